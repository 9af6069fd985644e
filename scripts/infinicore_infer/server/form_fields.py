"""How clients spell the form of an answer: as OpenAI, vLLM, llama-server, SGLang or TGI do."""

from __future__ import annotations

from collections.abc import Callable

from infinicore_infer.errors import FieldError
from infinicore_infer.server.fields import SamplingFields, Strings
from infinicore_infer.server.forms import (
    Form,
    JsonStyle,
    choice_form,
    grammar_form,
    json_form,
    one_form,
    regex_form,
)
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.tag_forms import tags_form

_OBJECT = {"type": "object"}


class FormFields(SamplingFields):
    """The form of an answer in other words than the protocol's own; ``None`` means not given."""

    # vLLM's, and what they were called before.
    structured_outputs: JsonObject | None = None
    guided_json: str | JsonObject | None = None
    guided_json_object: bool | None = None
    guided_regex: str | None = None
    guided_choice: Strings | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None
    # llama-server's.
    grammar: str | None = None
    json_schema: str | JsonObject | None = None
    # SGLang's.
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | JsonObject | None = None

    def asked_form(self, standard: Form | None = None) -> Form | None:
        """Return the form that is asked for; takes a while for large ones.

        Args:
            standard: What the protocol's own field asks for.

        Raises:
            FieldError: It is not understood, or two fields ask for different ones.
        """
        pattern = self.guided_whitespace_pattern or None
        if pattern is not None and self.guided_json is None and not self.guided_json_object:
            problem = "only makes sense with guided_json or guided_json_object"
            raise FieldError("guided_whitespace_pattern", problem, joint=" ")
        style = JsonStyle(pattern)
        forms = [] if standard is None else [standard]
        if self.structured_outputs:
            forms.append(_structured(self.structured_outputs))
        if self.guided_json is not None:
            forms.append(json_form(self.guided_json, "guided_json", style))
        if self.guided_json_object:
            forms.append(json_form(_OBJECT, "guided_json_object", style))
        if self.guided_choice is not None:
            forms.append(choice_form(self.guided_choice, "guided_choice"))
        if self.json_schema is not None:
            forms.append(json_form(self.json_schema, "json_schema"))
        # Empty texts ask for nothing.
        texts: tuple[tuple[str, Callable[[object, str], Form]], ...] = (
            ("guided_regex", regex_form),
            ("guided_grammar", grammar_form),
            ("grammar", grammar_form),
            ("regex", regex_form),
            ("ebnf", grammar_form),
            ("structural_tag", tags_form),
        )
        forms += [form(value, name) for name, form in texts if (value := getattr(self, name))]
        return one_form(forms)


def _structured(value: JsonObject) -> Form:
    """Return what vLLM's ``structured_outputs`` asks for.

    Raises:
        FieldError: It asks for nothing, for several forms, or for something wrong.
    """
    name = "structured_outputs"
    pattern = value.get("whitespace_pattern")
    if pattern is not None and not isinstance(pattern, str):
        raise FieldError(f"{name}.whitespace_pattern", "must be a regular expression, a string")
    compact = _flag(value, "disable_any_whitespace")
    if compact and pattern is not None:
        problem = "is true, but whitespace_pattern says where there is some"
        raise FieldError(f"{name}.disable_any_whitespace", problem, joint=" ")
    style = JsonStyle(pattern, compact, _flag(value, "disable_additional_properties"))
    kinds: dict[str, Callable[[object, str], Form]] = {
        "json": lambda given, field: json_form(given, field, style),
        "json_object": lambda given, field: json_form(_OBJECT, field, style),
        "regex": regex_form,
        "choice": choice_form,
        "grammar": grammar_form,
        "structural_tag": tags_form,
    }
    given = [kind for kind in kinds if value.get(kind) is not None]
    if len(given) != 1:
        problem = "has " + (" and ".join(given) or "none of them")
        raise FieldError(name, f"must have one of {', '.join(kinds)}; it {problem}", joint=" ")
    kind = given[0]
    if kind == "json_object" and not _flag(value, kind):
        raise FieldError(f"{name}.{kind}", "must be true, or left out")
    return kinds[kind](value[kind], f"{name}.{kind}")


def _flag(value: JsonObject, key: str) -> bool:
    """Return a part of ``structured_outputs`` that must be true, false or null.

    Raises:
        FieldError: It is something else.
    """
    given = value.get(key)
    if given is not None and not isinstance(given, bool):
        raise FieldError(f"structured_outputs.{key}", f"must be true or false, got {given!r:.60}")
    return bool(given)


def response_form(form: JsonObject | None) -> Form | None:
    """Return what OpenAI's ``response_format`` asks for; ``None``: text.

    Raises:
        FieldError: It is of an unknown type, or has no schema.
    """
    name = "response_format"
    kind = "text" if form is None else form.get("type")
    if form is None:
        return None
    # llama-server takes the schema beside either type.
    beside, wrapper = form.get("schema"), form.get("json_schema")
    if beside is not None and not isinstance(beside, dict):
        raise FieldError(name, ".schema: must be an object", joint="")
    if kind == "text":
        for key in ("schema", "json_schema"):
            if form.get(key) is not None:
                problem = f".{key}: type 'text' has none; use type 'json_schema'"
                raise FieldError(name, problem, joint="")
        return None
    if kind == "structural_tag":
        return tags_form(form, name)
    if kind == "grammar":
        return grammar_form(form.get("grammar"), name)
    # TGI's have their value in a field of that name.
    if kind == "regex":
        given = form.get("value")
        return regex_form(form.get("pattern") if given is None else given, name)
    if kind == "json":
        return json_form(form.get("value"), name)
    if kind == "json_object" and wrapper is None:
        return json_form(_OBJECT if beside is None else beside, name)
    if kind not in ("json_object", "json_schema"):
        raise FieldError(name, f"type {kind!r} is not supported")
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else beside
    if isinstance(wrapper, dict) and beside is not None and beside != schema:
        raise FieldError(name, ".schema: is not that of json_schema", joint="")
    if not isinstance(schema, dict):
        raise FieldError(name, ".json_schema: has no schema object", joint="")
    return json_form(schema, name)
