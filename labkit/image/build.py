"""The subject's image, built from this host (see `labkit.image.tiny` for the small one)."""

from __future__ import annotations

from labkit.image.tiny import tiny_layout

__all__ = ["tiny_layout"]
