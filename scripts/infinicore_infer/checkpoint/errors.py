"""Errors of checkpoint files."""

from __future__ import annotations


class SafetensorsError(ValueError):
    """A checkpoint file is damaged, incomplete or of an unknown kind."""


class GgufError(SafetensorsError):
    """A GGUF file is damaged, incomplete, or describes what is not supported."""


class QuantizationError(ValueError):
    """A checkpoint is quantised in a way that is not supported, or its parts do not fit."""
