"""Forms that an answer may have to have: JSON, a pattern, one of several texts, a grammar.

A form is a rule in llguidance's notation, whatever the client's spelling was; how the clients spell
it is in form_fields.py, and when it is enforced in grammar.py.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llguidance import regex_to_lark

from infinicore_infer.errors import FieldError
from infinicore_infer.generate.grammar import Grammar
from infinicore_infer.server.gbnf import gbnf_to_lark, is_gbnf
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.schemas import prepared
from infinicore_infer.text.traced import strings

_MAX_PROPERTIES = 1000
# Of a name, a value or a pattern: all of it is looked through again for each token's mask.
_MAX_TEXT = 8192
_MAX_CHOICES = 10_000
# Of a grammar; some take a time to compile that is quadratic in it.
_MAX_RULES = 64 << 10
# Without a limit, a small model can write spaces until its tokens are used up. The separators are
# those that models see most.
_SPACED: Mapping[str, object] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
# What in a grammar of Lark's notation is no reference to a token.
_NO_REFERENCE = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|//[^\n]*')


@dataclass(frozen=True, slots=True)
class Form:
    """What the text of an answer must be like.

    Attributes:
        field: What asks for it, for errors.
        what: What it is, for errors, such as "the schema".
        rule: The right side of a rule for it.
        whole: It as a grammar of its own.
        tried: Whether texts are to be drawn from it before it is accepted, since it may take much
            work to follow; of schemas, their keywords tell.
    """

    field: str = dataclasses.field(compare=False)
    what: str
    rule: str
    whole: str = dataclasses.field(compare=False)
    tried: bool = False

    def grammar(self) -> Grammar:
        """Return what enforces it.

        Raises:
            FieldError: It is too long.
        """
        return Grammar(self.whole, self.field, what=self.what, tried=self.tried)


def _form(field: str, what: str, rule: str, *, tried: bool = False) -> Form:
    return Form(field, what, rule, f"start: {rule}", tried)


@dataclass(frozen=True, slots=True)
class JsonStyle:
    """How JSON is written.

    Attributes:
        whitespace: A pattern of what may stand between its parts; ``None``: a space after commas
            and colons.
        compact: Whether there is nothing between them.
        closed: Whether objects have no keys but those that the schema names, wherever it does not
            say otherwise.
    """

    whitespace: str | None = None
    compact: bool = False
    closed: bool = False

    def options(self) -> Mapping[str, object]:
        """Return it in llguidance's words."""
        tight = {"item_separator": ",", "key_separator": ":"}
        if self.whitespace is not None:
            return {"whitespace_flexible": True, "whitespace_pattern": self.whitespace, **tight}
        return {"whitespace_flexible": False, **tight} if self.compact else _SPACED


PLAIN = JsonStyle()


def json_form(schema: object, field: str, style: JsonStyle = PLAIN) -> Form:
    """Return the form of JSON of a schema.

    Args:
        schema: From a client; a string is JSON of it.
        field: What asks for it, for errors.
        style: How it is written.

    Raises:
        FieldError: It is no schema, too large, or cannot be enforced.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            raise FieldError(field, "is no JSON") from None
    # A schema may also be true: whatever is JSON.
    schema = {} if schema is True else schema
    if not isinstance(schema, dict):
        raise FieldError(field, "must be a JSON schema, which is an object")
    if style.closed:
        schema = _closed(schema)
    return _form(field, "the schema", json_rule(schema, field, style))


def _closed(schema: JsonObject) -> JsonObject:
    """Return a schema whose objects are closed where they name keys and do not say otherwise."""
    result = {key: _closed_parts(item) for key, item in schema.items()}
    if isinstance(result.get("properties"), dict) or "patternProperties" in result:
        result.setdefault("additionalProperties", False)
    return result


def _closed_parts(value: object) -> object:
    if isinstance(value, list):
        return [_closed_parts(item) for item in value]
    return _closed(value) if isinstance(value, dict) else value


def json_rule(schema: JsonObject, field: str, style: JsonStyle = PLAIN) -> str:
    """Return the right side of a rule for JSON of a schema; see :func:`json_form`."""
    _check_size(schema, field)
    schema = prepared(schema, field)
    longest = max((len(text) for text in strings(schema)), default=0)
    if longest > _MAX_TEXT:
        problem = f"the schema has a name, a value or a pattern of {longest} characters"
        raise FieldError(field, f"{problem}; at most {_MAX_TEXT} are supported")
    return f"%json {json.dumps({**schema, 'x-guidance': style.options()})}"


def _check_size(schema: object, field: str) -> None:
    """Refuse objects so large that compiling, whose time is quadratic, takes seconds."""
    if isinstance(schema, dict):
        properties = schema.get("properties")
        if isinstance(properties, dict) and len(properties) > _MAX_PROPERTIES:
            problem = f"the schema has an object of {len(properties)} properties"
            raise FieldError(field, f"{problem}; at most {_MAX_PROPERTIES} are supported")
    if isinstance(schema, dict | list):
        for item in schema.values() if isinstance(schema, dict) else schema:
            _check_size(item, field)


def _check_text(text: str, field: str, what: str, most: int) -> None:
    """Refuse what is too long, or no text.

    Raises:
        FieldError: It is.
    """
    if len(text) > most:
        problem = f"{what} has {len(text)} characters; at most {most} are supported"
        raise FieldError(field, problem)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"character {error.start} is half of a surrogate pair"
        raise FieldError(field, problem) from None


def regex_rule(pattern: object, field: str) -> str:
    r"""Return the right side of a rule for texts that a regular expression matches as a whole.

    ``\d``, ``\w`` and ``\s`` are ASCII's, as in JSON Schema and most other engines of grammars.

    Raises:
        FieldError: It is none, or too long.
    """
    if not isinstance(pattern, str) or not pattern:
        raise FieldError(field, "must be a regular expression: a string that is not empty")
    _check_text(pattern, field, "the pattern", _MAX_TEXT)
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise FieldError(field, "the pattern is not supported: it ends with a backslash")
    # It is the whole text anyway; what Python and others write at its ends is not Rust's.
    pattern = re.sub(r"^\\A", "", pattern)
    pattern = re.sub(r"(?<!\\)((?:\\\\)*)\\[Zz]$", r"\1", pattern)
    # A line end would end the rule.
    lines = pattern.replace("\r", "\\r").replace("\n", "\\n")
    return f"/{regex_to_lark(lines, 'dws')}/"


def regex_form(pattern: object, field: str) -> Form:
    """Return the form of texts that a pattern matches; see :func:`regex_rule`."""
    return _form(field, "the pattern", regex_rule(pattern, field), tried=True)


def choice_form(choices: object, field: str) -> Form:
    """Return the form of one of several texts.

    Raises:
        FieldError: There is none, or something else among them.
    """
    if not isinstance(choices, list) or not choices:
        raise FieldError(field, "must be a list of at least one string")
    if len(choices) > _MAX_CHOICES:
        raise FieldError(field, f"has {len(choices)} texts; at most {_MAX_CHOICES} are supported")
    for i, choice in enumerate(choices):
        if not isinstance(choice, str):
            raise FieldError(f"{field}[{i}]", "must be a string")
        _check_text(choice, f"{field}[{i}]", "the text", _MAX_TEXT)
    return _form(field, "the choice", " | ".join(literal(text) for text in dict.fromkeys(choices)))


def literal(text: str) -> str:
    """Return a text as rules have it."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def grammar_form(text: object, field: str) -> Form:
    """Return the form of texts of a context-free grammar.

    Args:
        text: The grammar, in llama.cpp's notation (GBNF) or Lark's as llguidance has it.
        field: What asks for it, for errors.

    Raises:
        FieldError: It is not understood.
    """
    if not isinstance(text, str) or not text.strip():
        raise FieldError(field, "must be a grammar: a string that is not empty")
    _check_text(text, field, "the grammar", _MAX_RULES)
    if is_gbnf(text):
        lark = gbnf_to_lark(text, field)
    else:
        lark = text
        if "<[" in _NO_REFERENCE.sub("", lark):
            # It could be one that ends the answer before its form is complete.
            raise FieldError(field, "tokens by number (<[...]>) are not supported")
    return Form(field, "the grammar", f"%lark {{\n{lark}\n}}", lark, True)


def one_form(forms: Sequence[Form]) -> Form | None:
    """Return the form that a request asks for, however often.

    Raises:
        FieldError: Two fields ask for different ones.
    """
    for form in forms[1:]:
        if form != forms[0]:
            problem = f"asks for another form of the answer than {forms[0].field}; send one of them"
            raise FieldError(form.field, problem, joint=" ")
    return forms[0] if forms else None
