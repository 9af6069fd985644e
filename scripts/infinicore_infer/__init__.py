"""Runs Qwen3 text models; :mod:`qwen3` has the names that programs need."""
