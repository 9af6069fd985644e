"""What a model's text consists of, piece by piece: thinking, the answer, and calls of tools."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of the thinking before the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool begins; its arguments follow.

    Attributes:
        name: The tool's name, as the model wrote it.
        id: A name of the call itself, made up here, by which the tool's answer refers to it.
    """

    name: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the latest call's arguments, which are JSON if the model made no mistake."""

    text: str


Part: TypeAlias = Reasoning | Content | Call | Arguments
