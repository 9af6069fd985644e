"""Typed access to the values of a config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class ConfigError(ValueError):
    """A model's configuration has a wrong value, or asks for something unsupported."""


class ConfigKeyError(ConfigError, KeyError):
    """A model's configuration lacks a key."""

    def __str__(self) -> str:
        """Return the message; KeyError would quote it."""
        return str(self.args[0])


def short(value: object) -> str:
    """Return a value for a message; an integer of thousands of digits has no text at all."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


class Reader:
    """Typed access to one JSON object, with messages that name the file and the key."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def fail(self, key: str, text: str) -> ConfigError:
        """Return an error about a key."""
        return ConfigError(f"{self.source}: {key!r} {text}")

    def get(self, key: str) -> Any:
        """Return a value; null counts as missing."""
        value = self.values.get(key)
        if value is None:
            state = "null" if key in self.values else "missing"
            raise ConfigKeyError(f"{self.source}: key {key!r} is {state}")
        return value

    def size(self, key: str, limit: int = 2**31 - 1) -> int:
        """Return a whole number from 1 to limit."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(key, f"must be a whole number, got {short(value)}")
        if not 1 <= value <= limit:
            raise self.fail(key, f"must be from 1 to {limit}, got {short(value)}")
        return value

    def positive(self, key: str) -> float:
        """Return a finite number above zero."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(key, f"must be a number, got {short(value)}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not (math.isfinite(number) and number > 0):
            raise self.fail(key, f"must be above zero and finite, got {short(value)}")
        return number

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return true or false; without a default the key is required."""
        if default is not None and self.values.get(key) is None:
            return default
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.fail(key, f"must be true or false, got {value!r}")
        return value

    def string(self, key: str) -> str:
        """Return a text."""
        value = self.get(key)
        if not isinstance(value, str):
            raise self.fail(key, f"must be a string, got {value!r}")
        return value
