"""Structural tags: free text in which what follows certain beginnings has a form, as vLLM has them.

Both notations are read: ``structures`` and ``triggers``, and xgrammar's ``format``.
"""

from __future__ import annotations

import itertools
import json
import re

from infinicore_infer.errors import FieldError
from infinicore_infer.server.forms import Form, grammar_form, json_rule, literal, regex_rule
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.text.tool_calls import CALL, CALL_END

_TEXT = "/(?s:.*)/"
# The model writes these tags as tokens of their own.
_TOKENS = re.compile(f"({re.escape(CALL)}|{re.escape(CALL_END)})")
_MAX_DEPTH = 16


def tags_form(value: object, field: str) -> Form:
    """Return the form that structural tags ask for.

    Args:
        value: An object, or JSON of it.
        field: What asks for it, for errors.

    Raises:
        FieldError: It is not understood.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise FieldError(field, "is no JSON") from None
    if not isinstance(value, dict):
        raise FieldError(field, "must be an object")
    rules = _Rules(field)
    if "format" in value:
        start = rules.format(value["format"], f"{field}.format", 0)
    else:
        start = rules.old(value)
    text = "\n".join([f"start: {start}", *rules.lines])
    return Form(field, "the structural tag", f"%lark {{\n{text}\n}}", text, True)


class _Rules:
    """Rules of one form.

    Attributes:
        lines: Those that the others refer to.
    """

    def __init__(self, field: str) -> None:
        self.lines: list[str] = []
        self._field = field
        self._numbers = itertools.count()

    def _add(self, right: str, name: str = "part", options: str = "") -> str:
        """Add a rule; return its name."""
        name = f"{name}{next(self._numbers)}"
        self.lines.append(f"{name}{options}: {right}")
        return name

    def old(self, value: JsonObject) -> str:
        """Return the rule of ``structures`` and ``triggers``."""
        tags = []
        for i, item in enumerate(_list(value.get("structures"), f"{self._field}.structures")):
            where = f"{self._field}.structures[{i}]"
            schema = item.get("schema") if isinstance(item, dict) else None
            content = {"type": "json_schema", "json_schema": {} if schema is None else schema}
            parts = item if isinstance(item, dict) else {}
            tags.append({**parts, "content": content, "_where": where})
        given = {"triggers": value.get("triggers"), "tags": tags,
                 "at_least_one": value.get("at_least_one")}  # fmt: skip
        return self._triggered(given, self._field, 0)

    def format(self, value: object, where: str, depth: int) -> str:
        """Return the right side of a rule for one of xgrammar's formats."""
        if not isinstance(value, dict):
            raise FieldError(where, "must be an object")
        if depth > _MAX_DEPTH:
            raise FieldError(where, f"is nested more than {_MAX_DEPTH} deep", joint=" ")
        kind = value.get("type")
        if kind == "const_string":
            return self._text(value.get("value"), f"{where}.value")
        if kind == "json_schema":
            schema = value.get("json_schema")
            schema = {} if schema is True else schema
            if not isinstance(schema, dict):
                raise FieldError(f"{where}.json_schema", "must be a schema, which is an object")
            return json_rule(schema, f"{where}.json_schema")
        if kind == "regex":
            return regex_rule(value.get("pattern"), f"{where}.pattern")
        if kind == "grammar":
            return grammar_form(value.get("grammar"), f"{where}.grammar").rule
        if kind == "any_text":
            return self._any_text(value, where)
        if kind in ("sequence", "or"):
            elements = _list(value.get("elements"), f"{where}.elements")
            parts = [
                self._add(self.format(item, f"{where}.elements[{i}]", depth + 1))
                for i, item in enumerate(elements)
            ]
            return (" " if kind == "sequence" else " | ").join(parts)
        if kind == "tag":
            return self._tag(value, "", where, depth)
        if kind == "triggered_tags":
            return self._triggered(value, where, depth)
        if kind == "tags_with_separator":
            return self._separated(value, where, depth)
        raise FieldError(f"{where}.type", f"{kind!r} is not supported")

    @staticmethod
    def _text(text: object, where: str) -> str:
        """Return a rule for a text; its tags are tokens."""
        if not isinstance(text, str):
            raise FieldError(where, "must be a string")
        parts = [part for part in _TOKENS.split(text) if part]
        return " ".join(part if _TOKENS.match(part) else literal(part) for part in parts) or '""'

    def _any_text(self, value: JsonObject, where: str) -> str:
        excluded = value.get("excludes")
        if excluded:
            raise FieldError(f"{where}.excludes", "is not supported", joint=" ")
        return self._add(_TEXT, "text")

    def _tag(self, value: JsonObject, begun: str, where: str, depth: int) -> str:
        """Return a rule for a tag, whose beginning may be there already."""
        begin = value.get("begin")
        if not isinstance(begin, str):
            raise FieldError(f"{where}.begin", "must be a string")
        # xgrammar takes several ends.
        given = value.get("end")
        ends = [
            end for end in (given if isinstance(given, list) else [given]) if isinstance(end, str)
        ]
        if not ends or (isinstance(given, list) and len(ends) < len(given)):
            raise FieldError(f"{where}.end", "must be a string")
        content = value.get("content")
        head = self._text(begin[len(begun) :], f"{where}.begin") if begin != begun else ""
        if isinstance(content, dict) and content.get("type") == "any_text":
            self._any_text(content, f"{where}.content")
            return f"{head} {self._until(ends, where)}"
        body = self._add(self.format(content, f"{where}.content", depth + 1))
        return f"{head} {body} ({' | '.join(self._text(end, f'{where}.end') for end in ends)})"

    def _until(self, ends: list[str], where: str) -> str:
        """Return the name of a rule for any text up to an end."""
        if len(ends) > 1:
            raise FieldError(f"{where}.end", "of any_text must be one string", joint=" ")
        if not ends[0]:
            return self._add(_TEXT, "text")
        if _TOKENS.fullmatch(ends[0]):
            return f"{self._add(_TEXT, 'text')} {ends[0]}"
        return self._add(_TEXT, "text", f"[suffix={literal(ends[0])}]")

    def _triggered(self, value: JsonObject, where: str, depth: int) -> str:
        """Return a rule for free text with tags that certain beginnings, the triggers, call for."""
        triggers = _list(value.get("triggers"), f"{where}.triggers")
        tags: dict[str, list[str]] = {}
        for i, item in enumerate(_list(value.get("tags"), f"{where}.tags")):
            place = f"{where}.tags[{i}]"
            if not isinstance(item, dict):
                raise FieldError(place, "must be an object")
            place = str(item.get("_where", place))
            begin = item.get("begin")
            fitting = [t for t in triggers if isinstance(t, str) and t and str(begin).startswith(t)]
            if not fitting:
                problem = f"must begin with one of the triggers, {triggers!r:.100}"
                raise FieldError(f"{place}.begin", problem)
            trigger = max(fitting, key=len)
            tags.setdefault(trigger, []).append(self._add(self._tag(item, trigger, place, depth)))
        if not tags:
            raise FieldError(where, "has no tags", joint=" ")
        called = []
        for trigger, options in tags.items():
            if _TOKENS.fullmatch(trigger):
                head = f"{self._add(_TEXT, 'text')} {trigger}"
            else:
                head = self._add(f"/(?s:.*)/ {literal(trigger)}", "trigger", "[lazy]")
            called.append(self._add(f"{head} ({' | '.join(options)})"))
        tag, rest = self._add(" | ".join(called)), self._add(_TEXT, "text")
        needed = _flag(value, "at_least_one", where)
        if _flag(value, "stop_after_first", where):
            return tag if needed else f"{tag} | {rest}"
        return f"{tag}{'+' if needed else '*'} {rest}"

    def _separated(self, value: JsonObject, where: str, depth: int) -> str:
        tags = [
            self._add(self._tag(item if isinstance(item, dict) else {}, "", place, depth))
            for i, item in enumerate(_list(value.get("tags"), f"{where}.tags"))
            if (place := f"{where}.tags[{i}]")
        ]
        tag = self._add(" | ".join(tags))
        needed = _flag(value, "at_least_one", where)
        more = "" if _flag(value, "stop_after_first", where) else (
            f" ({self._text(value.get('separator'), f'{where}.separator')} {tag})*"
        )  # fmt: skip
        return f"{tag}{more}" if needed else f"({tag}{more})?"


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list) or not value:
        raise FieldError(where, "must be a list that is not empty")
    return value


def _flag(value: JsonObject, key: str, where: str) -> bool:
    given = value.get(key)
    if given is not None and not isinstance(given, bool):
        raise FieldError(f"{where}.{key}", f"must be true or false, got {given!r:.60}")
    return bool(given)
