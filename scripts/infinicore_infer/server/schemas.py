"""JSON schemas as clients send them, made ready for grammars.

A grammar enforces most of JSON Schema 2020-12. What it cannot enforce is either an annotation, and
dropped, or refused; docs/server.md lists both.
"""

from __future__ import annotations

from collections.abc import Iterator

from infinicore_infer.errors import FieldError
from infinicore_infer.server.endless_schemas import Endless, Schema
from infinicore_infer.server.json_values import JsonObject

# Formats that grammars enforce. The specification lets others be annotations.
_FORMATS = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri",
            "uuid")  # fmt: skip
_ANNOTATIONS = frozenset((
    "$comment", "title", "description", "default", "example", "examples", "deprecated", "readOnly",
    "writeOnly", "contentEncoding", "contentMediaType", "contentSchema", "discriminator",
    "uniqueItems", "x-guidance", "$dynamicAnchor", "$recursiveAnchor",
))  # fmt: skip
_UNENFORCED = ("not", "if", "then", "else", "contains", "dependentRequired", "dependentSchemas",
               "dependencies", "$dynamicRef", "$recursiveRef")  # fmt: skip
_COMBINING = ("allOf", "anyOf", "oneOf")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
# Values that are no schemas.
_PLAIN = ("const", "enum", "type", "required", "pattern", "$ref", "$schema", "$id", "$anchor")
# Grammars count in 64 bits.
_LARGEST = 9 * 10**18
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_OBJECTS = ("properties", "patternProperties", "additionalProperties", "required")


def prepared(schema: JsonObject, field: str) -> JsonObject:
    """Return a schema as grammars take it, with the same instances or fewer.

    Objects that list ``properties`` are closed unless they say otherwise: what a model would write
    besides is nothing that their author has thought of.

    Args:
        schema: From a client.
        field: What it is in, for errors.

    Raises:
        FieldError: It has what no grammar enforces, or no instance that ends.
    """
    ready = _Preparation(schema, field).prepared()
    endless = Endless(ready)
    if not isinstance(ready, dict) or not endless.ends(ready):
        raise FieldError(field, "the schema has no instance that ends: it requires itself, or none")
    endless.cut(ready)
    return ready


def _is_trivial(schema: object) -> bool:
    return schema is True or schema == {} or schema == {"type": "string"}


class _Preparation:
    """Makes one schema ready."""

    def __init__(self, root: JsonObject, field: str) -> None:
        self._root = root
        self._field = field
        # What is one part among several of another object must let the other parts' keys come.
        self._open = set(self._merged_references(root))

    def prepared(self) -> Schema:
        return self._schema(self._root, "#")

    def _refuse(self, what: str) -> FieldError:
        return FieldError(self._field, f"the schema is not supported: {what}")

    def _merged_references(self, value: object, *, merged: bool = False) -> Iterator[str]:
        if isinstance(value, list):
            for item in value:
                yield from self._merged_references(item, merged=merged)
        if not isinstance(value, dict):
            return
        merged = merged or _is_merged(value)
        if merged and isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for key, item in value.items():
            yield from self._merged_references(item, merged=merged and key in _COMBINING)

    def _schema(self, schema: object, place: str, *, merged: bool = False) -> Schema:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise self._refuse(f"{str(schema)[:60]!r} in place of a schema")
        schema = self._rewritten(schema)
        among = merged or _is_merged(schema)
        result: JsonObject = {}
        for key, value in schema.items():
            here = f"{place}/{key}"
            if key in _UNENFORCED:
                raise self._refuse(f"{key} cannot be enforced")
            if key in _ANNOTATIONS or (key == "format" and value not in _FORMATS):
                continue
            if key in _BOUNDS and isinstance(value, int | float) and not isinstance(value, bool):
                result[key] = max(-_LARGEST, min(value, _LARGEST))
            elif key in _COUNTS and isinstance(value, float) and value.is_integer():
                result[key] = int(value)
            elif key in _PLAIN or not isinstance(value, dict | list):
                result[key] = self._schema(value, here) if isinstance(value, bool) else value
            elif key in _COMBINING and isinstance(value, list):
                result[key] = [
                    self._schema(item, f"{here}/{i}", merged=among) for i, item in enumerate(value)
                ]
            elif isinstance(value, list):
                result[key] = [self._schema(item, f"{here}/{i}") for i, item in enumerate(value)]
            elif key in _MAPS:
                result[key] = {
                    name: self._schema(item, f"{here}/{name}") for name, item in value.items()
                }
            else:
                # Also of unknown keywords, which references may point into.
                result[key] = self._schema(value, here)
        listed = result.get("properties")
        if isinstance(listed, dict) and not among and place not in self._open:
            required = schema.get("required")
            names = required if isinstance(required, list) else []
            missing = [name for name in names if isinstance(name, str) and name not in listed]
            result["properties"] = {**listed, **dict.fromkeys(missing, True)}
            result.setdefault("additionalProperties", False)
        return result

    def _rewritten(self, schema: JsonObject) -> JsonObject:
        """Return a schema with keywords that grammars know in place of others that mean the same.

        Raises:
            FieldError: One of them means more than that.
        """
        schema = _without_idle(schema)
        combined = any(key in schema for key in (*_COMBINING, "$ref"))
        for rest, plain in (
            ("unevaluatedProperties", "additionalProperties"),
            ("unevaluatedItems", "items"),
        ):
            value = schema.pop(rest, True)
            if combined and not _is_trivial(value):
                raise self._refuse(f"{rest} beside other schemas cannot be enforced")
            if value is not True:
                schema.setdefault(plain, value)
        names = schema.pop("propertyNames", True)
        if isinstance(names, dict):
            names = {key: value for key, value in names.items() if key not in _ANNOTATIONS}
        if _is_trivial(names):
            return schema
        given = (
            {key: names[key] for key in names if key != "type"} if isinstance(names, dict) else {}
        )
        values = schema.get("additionalProperties", True)
        if combined or "properties" in schema or "patternProperties" in schema:
            raise self._refuse("propertyNames beside properties cannot be enforced")
        choices = given.get("enum")
        if list(given) == ["enum"] and isinstance(choices, list):
            listed = {name: values for name in choices if isinstance(name, str)}
            return {**schema, "properties": listed, "additionalProperties": False}
        if list(given) == ["pattern"]:
            patterns = {str(given["pattern"]): values}
            return {**schema, "patternProperties": patterns, "additionalProperties": False}
        raise self._refuse("propertyNames other than enum or pattern cannot be enforced")


def _without_idle(schema: JsonObject) -> JsonObject:
    """Return a schema without keywords that mean nothing, as what they go with is not there."""
    idle = {key for key in ("dependentRequired", "dependentSchemas", "dependencies")
            if not schema.get(key)}  # fmt: skip
    if "if" not in schema:
        idle |= {"then", "else"}
    elif not schema.keys() & {"then", "else"}:
        idle.add("if")
    if schema.get("minContains") == 0 and "maxContains" not in schema:
        idle.add("contains")
    if "contains" not in schema or "contains" in idle:
        idle |= {"minContains", "maxContains"}
    return {key: value for key, value in schema.items() if key not in idle}


def _is_merged(schema: JsonObject) -> bool:
    """Return whether several schemas together tell what keys an object has."""
    parts = sum(len(v) for k in ("allOf",) if isinstance(v := schema.get(k), list))
    parts += sum(key in schema for key in ("anyOf", "oneOf", "$ref"))
    return parts + any(key in schema for key in _OBJECTS) > 1
