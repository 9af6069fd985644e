"""Runs chat templates as transformers does, and follows where a prompt's characters came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import lru_cache, partial, wraps
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_format, do_indent
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from markupsafe import Markup

from infinicore_infer.text import traced
from infinicore_infer.text.traced_formats import braces, percent

# Bits of a number, characters of a text: a power or a repetition is one call into C, which no time
# limit interrupts.
_MOST_SIZE = 1 << 24


def _check_size(operator: str, left: Any, right: Any) -> None:
    """Refuse a product or a power of unreasonable size.

    Raises:
        OverflowError: It is one.
    """
    if isinstance(right, str | list | tuple):
        left, right = right, left
    if not isinstance(right, int):
        return
    if isinstance(left, str | list | tuple):
        size = len(left) * right
    else:
        size = left.bit_length() * right if isinstance(left, int) and operator == "**" else 0
    if size > _MOST_SIZE:
        raise OverflowError(f"{operator} would make something of size {size:.0e}")


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


def _shown(value: Any) -> Any:
    """Return what is printed of a value: the text of lists and objects knows nothing of marks."""
    if isinstance(value, str) or not traced.holds_traced(value):
        return value
    return traced.derived(str(value), value)


def _concat(parts: Iterable[str]) -> str:
    items = list(parts)
    return traced.join(items) if any(map(traced.holds_traced, items)) else "".join(items)


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox, because templates come with downloaded checkpoints."""

    concat = staticmethod(_concat)
    intercepted_binops = frozenset({"%", "*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute ``left % right`` with marks, and products and powers of no unreasonable size."""
        # Markup escapes what it is filled with.
        if operator == "%":
            if type(left) in (str, traced.TracedStr) and traced.holds_traced([left, right]):
                return percent(left, right)
        else:
            _check_size(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, /, *args: Any, **named: Any) -> Any:
        """Call something, following strings through methods of the template's own strings.

        ``"".join(...)``, ``"...".format(...)`` and ``"...".replace(...)`` know nothing of marks.
        """
        # Jinja wraps ``format``.
        method = getattr(function, "__wrapped__", function)
        owner = getattr(method, "__self__", None)
        if type(owner) is str and method.__name__ == "join":
            args = tuple(list(item) if isinstance(item, Iterable) else item for item in args)
        if not isinstance(owner, str) or not traced.holds_traced([owner, *args, *named.values()]):
            return super().call(context, function, *args, **named)
        plain = partial(super().call, context, function, *args, **named)
        if method.__name__ == "format" and type(owner) is str:
            return braces(plain, SandboxedFormatter(self), owner, args, named)
        if method.__name__ in ("format", "format_map"):
            return traced.derived(plain(), [owner, *args, *named.values()])
        if type(owner) is not str:
            return plain()
        own = traced.TracedStr(owner, traced.marks_of(owner))
        return super().call(context, getattr(own, method.__name__), *args, **named)


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


def _safe(value: Any) -> Any:
    """Return what is not escaped; Jinja's ``safe`` would drop the marks."""
    return traced.TracedMarkup(value) if isinstance(value, traced.TracedStr) else Markup(value)


def _indent(*args: Any, **named: Any) -> str:
    """Return Jinja's ``indent``, which joins lines behind the first in a way of its own."""
    return traced.derived(str.__str__(do_indent(*args, **named)), [*args, *named.values()])


def _format(value: Any, *args: Any, **named: Any) -> str:
    """Return Jinja's ``format``, with the marks of what is filled in."""
    if type(value) in (str, traced.TracedStr) and traced.holds_traced([value, args, named]):
        return percent(value, named or args)
    return do_format(value, *args, **named)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _environment() -> Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[loopcontrols, _Generation],
        finalize=_shown,
    )
    filters = environment.filters
    for name, function in filters.items():
        filters[name] = _followed(function)
    filters["join"] = _followed_join(filters["join"].__wrapped__)
    filters.update(tojson=traced.to_json, safe=_safe, indent=_indent, format=_format)
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
    template.root_render_func.__globals__["str_join"] = lambda parts: _concat(
        str(_shown(p)) for p in parts
    )
    return template.render


__all__ = ["TemplateError", "compile_template"]
