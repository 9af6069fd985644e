"""Grammars in llama.cpp's notation, GBNF, for llguidance, which converts them to Lark's."""

from __future__ import annotations

import re

from llguidance import gbnf_to_lark as converter

from infinicore_infer.errors import FieldError

_RULE = re.compile(r"(?m)^[ \t]*[A-Za-z0-9_-]+[ \t]*::=")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", re.DOTALL)
# Comments, strings, sets of characters, and what is written differently there.
_PARTS = re.compile(
    r'(?P<comment>\#[^\n]*)|(?P<text>"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\])'
    r"|(?P<any>\.)|(?P<most>\{\s*,)",
    re.DOTALL,
)


def is_gbnf(text: str) -> bool:
    """Return whether a grammar is in this notation and not in Lark's."""
    return _RULE.search(text) is not None


def _plain_escape(match: re.Match[str]) -> str:
    """Return an escape that the converter writes in a way that llguidance reads."""
    digits = match[1] or match[2] or match[3]
    if digits is None:
        return match[0]
    code = int(digits, 16)
    if code < 0x80:
        return f"\\x{code:02x}"
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise ValueError(f"{match[0]} is no character")
    return chr(code)


def _plain_part(match: re.Match[str]) -> str:
    if match["comment"] is not None:
        return ""
    if match["any"] is not None:
        return '([^\\n] | "\\n")'
    if match["most"] is not None:
        return "{0,"
    return _ESCAPE.sub(_plain_escape, match["text"])


def gbnf_to_lark(text: str, field: str) -> str:
    """Return a grammar in Lark's notation.

    Args:
        text: The grammar.
        field: What asks for it, for errors.

    Raises:
        FieldError: It is not understood.
    """
    try:
        return converter.gbnf_to_lark(_PARTS.sub(_plain_part, text)).partition("\n")[2]
    except RecursionError:
        raise FieldError(field, "the grammar is nested too deeply") from None
    except Exception as error:  # the converter raises bare Exception
        problem = " ".join(str(error).split())
        raise FieldError(field, f"the grammar is not supported: {problem[:300]}") from None
