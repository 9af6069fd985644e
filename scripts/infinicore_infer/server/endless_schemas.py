"""JSON schemas that require themselves: no text that ends is an instance of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TypeAlias
from urllib.parse import unquote

from infinicore_infer.server.json_values import JsonObject

Schema: TypeAlias = JsonObject | bool


class Endless:
    """Finds schemas whose instances never end, as each contains another one of the same kind."""

    def __init__(self, root: Schema) -> None:
        """Find out which references of a schema end.

        Args:
            root: The whole schema, as grammars take it.
        """
        self._root = root
        self._ends: dict[str, bool] = {}
        self._readers: dict[str, set[str]] = {}
        self._reader = ""
        waiting = deque(dict.fromkeys(self._references(root)))
        self._ends = dict.fromkeys(waiting, False)
        while waiting:
            name = waiting.popleft()
            if self._ends[name]:
                continue
            self._reader = name
            if self.ends(self._target(name)):
                self._ends[name] = True
                waiting += self._readers.pop(name, ())

    def _references(self, value: object) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for item in value.values():
                yield from self._references(item)
        elif isinstance(value, list):
            for item in value:
                yield from self._references(item)

    def _target(self, name: str) -> object:
        """Return what a reference points to; for others than to places in the schema, anything."""
        value: object = self._root
        if name != "#" and not name.startswith("#/"):
            return True
        for part in name.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            elif isinstance(value, dict):
                value = value.get(key, True)
            else:
                return True
        return value

    def ends(self, schema: object) -> bool:
        """Return whether a schema has an instance that ends, as far as is known."""
        if not isinstance(schema, dict):
            return schema is not False
        name = schema.get("$ref")
        if isinstance(name, str):
            self._readers.setdefault(name, set()).add(self._reader)
            if not self._ends.get(name, True):
                return False
        if not all(self.ends(item) for item in _list(schema.get("allOf"))):
            return False
        for key in ("anyOf", "oneOf"):
            if key in schema and not any([self.ends(item) for item in _list(schema[key])]):
                return False
        if schema.get("enum") == []:
            return False
        kind = schema.get("type")
        kinds = kind if isinstance(kind, list) else [kind]
        if any(kind not in ("object", "array") for kind in kinds):
            # Some number or text, or anything.
            return True
        return ("object" in kinds and self._object_ends(schema)) or (
            "array" in kinds and self._array_ends(schema)
        )

    def _object_ends(self, schema: JsonObject) -> bool:
        listed = schema.get("properties")
        listed = listed if isinstance(listed, dict) else {}
        rest = schema.get("additionalProperties", True)
        return all(
            # Others may be allowed by a pattern.
            self.ends(listed[name] if name in listed else "patternProperties" in schema or rest)
            for name in _list(schema.get("required"))
            if isinstance(name, str)
        )

    def _array_ends(self, schema: JsonObject) -> bool:
        least = schema.get("minItems")
        least = least if isinstance(least, int) else 0
        first = _list(schema.get("prefixItems"))[:least]
        rest = [schema.get("items", True)] if least > len(first) else []
        return all([self.ends(item) for item in [*first, *rest]])

    def cut(self, schema: object) -> None:
        """Remove branches that never end, so that no model gets into one."""
        if isinstance(schema, list):
            for item in schema:
                self.cut(item)
        if not isinstance(schema, dict):
            return
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list):
                schema[key] = [item for item in _list(schema[key]) if self.ends(item)]
        for key in ("properties", "patternProperties"):
            listed = schema.get(key)
            if isinstance(listed, dict):
                schema[key] = {
                    name: item if self.ends(item) else False for name, item in listed.items()
                }
        for key in ("additionalProperties", "items"):
            if key in schema and not self.ends(schema[key]):
                schema[key] = False
        for item in schema.values():
            self.cut(item)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
