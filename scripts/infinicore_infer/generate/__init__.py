"""Sequences of one model, in the caller's thread."""
