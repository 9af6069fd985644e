"""Runs chat templates as transformers does, and follows where a prompt's characters came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from infinicore_infer.text import traced


class _Generation(Extension):
    """``{% generation %}``, with which TRL marks what a model has to learn; it changes no text."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """Read the block; a scope of its own, as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> Any:
        return caller()


def _concat(parts: Iterable[str]) -> str:
    items = list(parts)
    return traced.join(items) if any(map(traced.holds_traced, items)) else "".join(items)


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox, because templates come with downloaded checkpoints."""

    concat = staticmethod(_concat)

    def call(self, context: Context, function: Any, /, *args: Any, **named: Any) -> Any:
        """Call something, following strings through methods of the template's own strings.

        ``"".join(...)``, ``"...".format(...)`` and ``"...".replace(...)`` know nothing of marks.
        """
        owner = getattr(function, "__self__", None)
        if type(owner) is str and function.__name__ == "join":
            args = tuple(list(item) if isinstance(item, Iterable) else item for item in args)
        if type(owner) is not str or not traced.holds_traced([*args, *named.values()]):
            return super().call(context, function, *args, **named)
        if function.__name__ == "format":
            text = super().call(context, function, *args, **named)
            return traced.filled(owner, traced.BRACES, text, [*args, *named.values()])
        own = traced.TracedStr(owner, traced.marks_of(owner))
        return super().call(context, getattr(own, function.__name__), *args, **named)


def _followed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter whose strings count as a client's if one of its arguments does."""

    @wraps(function)
    def follow(*args: Any, **named: Any) -> Any:
        result = function(*args, **named)
        if type(result) is str and traced.holds_traced([*args, *named.values()]):
            return traced.derived(result, [*args, *named.values()])
        return result

    return follow


def _followed_join(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return Jinja's ``join`` with the marks of what it joins."""

    @wraps(function)
    def follow(context: Any, value: Iterable[Any], d: str = "", attribute: Any = None) -> Any:
        items = list(value)
        text = function(context, items, d, attribute)
        if attribute is None and traced.holds_traced([d, *items]):
            return traced.join(map(str, items), d)
        return traced.derived(text, [d, *items])

    return follow


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _environment() -> Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    filters = environment.filters
    for name, function in filters.items():
        filters[name] = _followed(function)
    filters["join"] = _followed_join(filters["join"].__wrapped__)
    filters["tojson"] = traced.to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


@lru_cache(maxsize=8)
def compile_template(source: str) -> Callable[[Mapping[str, Any]], str]:
    """Return a function from variables to text, which is traced if one of the variables is.

    Raises:
        TemplateError: The source is wrong; so may be a call of the function.
    """
    template = _environment().from_string(source)
    # ``a ~ b`` of the compiled template.
    template.root_render_func.__globals__["str_join"] = lambda parts: _concat(map(str, parts))
    return template.render


__all__ = ["TemplateError", "compile_template"]
