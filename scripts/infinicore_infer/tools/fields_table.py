"""Writes the tables of fields into docs/server.md, from the server's own; a test compares them.

Example:
    .venv/bin/python -m infinicore_infer.tools.fields_table
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from infinicore_infer.server.app import BODIES, POOLING_BODIES
from infinicore_infer.server.known_fields import COMPLETIONS, HARMLESS, HARMLESS_AT, PARTS, REFUSED

BEGIN, END = "<!-- begin: known fields -->\n", "<!-- end: known fields -->\n"


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _lines() -> Iterator[str]:
    everywhere = frozenset.intersection(*(body.names() for body in BODIES))
    yield "| obeyed | fields |"
    yield "|---|---|"
    yield f"| everywhere | {_list(sorted(everywhere))} |"
    chats = frozenset.intersection(*(b.names() for b in BODIES if b.endpoint != COMPLETIONS))
    yield f"| in all chats | {_list(sorted(chats - everywhere))} |"
    for body in BODIES:
        shared = everywhere if body.endpoint == COMPLETIONS else chats
        yield f"| `{body.endpoint}` | {_list(sorted(body.names() - shared))} |"
    for body in BODIES:
        for name, inner in body.nested.items():
            if body.endpoint == "/api/chat":
                yield f"| `{name}` of Ollama's | {_list(sorted(inner.names()))} |"
    for body in POOLING_BODIES:
        yield f"| `{body.endpoint}` | {_list(sorted(body.names()))} |"
    parts = (f"{name}.{part}" for name, parts in PARTS.items() for part in parts)
    yield f"| of objects | {_list(sorted(parts))} |"
    yield ""
    yield "| harmless, since | fields |"
    yield "|---|---|"
    for reason, names in HARMLESS.items():
        yield f"| {reason} | {_list(sorted(names))} |"
    for endpoint, reasons in HARMLESS_AT.items():
        for name, reason in reasons.items():
            yield f"| at `{endpoint}` {reason} | `{name}` |"
    yield ""
    yield "| refused, unless empty or | fields |"
    yield "|---|---|"
    by_value: dict[str, list[str]] = {}
    for name, refused in REFUSED.items():
        values = " or ".join(f"`{value}`" for value in map(_json, refused.neutral))
        by_value.setdefault(values, []).append(name)
    for values, refused_names in by_value.items():
        yield f"| {values} | {_list(sorted(refused_names))} |"


def _json(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value).replace("'", '"') if isinstance(value, list) else str(value)


def markdown() -> str:
    """Return the tables."""
    return "\n".join(_lines()) + "\n"


def main() -> None:
    """Write them."""
    path = Path(__file__).parents[3] / "docs" / "server.md"
    before, _, rest = path.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}{markdown()}{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
