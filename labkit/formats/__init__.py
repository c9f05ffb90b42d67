"""Formats: what is in a checkpoint file, read from its header alone, and conversion between
them."""
