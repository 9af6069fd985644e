"""Errors of checkpoint files."""

from __future__ import annotations


class SafetensorsError(ValueError):
    """A checkpoint file is damaged, incomplete or of an unknown kind."""
