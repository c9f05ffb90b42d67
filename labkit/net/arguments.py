"""The type of `--link` for argparse. Limit: a link that can be written may still be faster than
this host. Lesson: none."""

from __future__ import annotations

from labkit.net.link import parse


def link(text: str) -> str:
    """An emulated link, checked here so that it is not found out after all is prepared."""
    parse(text)
    return text
