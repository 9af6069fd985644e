"""Writes the table of fields into docs/server.md, from the server's own; a test compares them.

Example:
    .venv/bin/python -m infinicore_infer.tools.fields_table
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from infinicore_infer.server.app import BODIES, POOLING_BODIES
from infinicore_infer.server.known_fields import HARMLESS, HARMLESS_AT, PARTS, REFUSED

BEGIN, END = "<!-- begin: known fields -->\n", "<!-- end: known fields -->\n"
# What becomes of a field, as cells have it.
OBEYED, IGNORED, REFUSES, UNKNOWN = "obeyed", "harmless", "refused", ""

_REASONS = {name: reason for reason, names in HARMLESS.items() for name in names}
_ALL = (*BODIES, *POOLING_BODIES)
_EVERYWHERE = frozenset(name for body in _ALL for name in body.names())


def columns() -> dict[str, tuple[str, Collection[str]]]:
    """Return what can have fields, its endpoint and the fields that are obeyed there, by title."""
    result: dict[str, tuple[str, Collection[str]]] = {
        body.endpoint: (body.endpoint, body.names()) for body in _ALL
    }
    for body in _ALL:
        for name, inner in body.nested.items():
            result.setdefault(name, (body.endpoint, inner.names()))
    return result


def fate(name: str, endpoint: str, obeyed: Collection[str]) -> str:
    """Return what becomes of a field.

    Args:
        name: The field, or ``field.part``.
        endpoint: Where it comes.
        obeyed: The fields that are obeyed there.
    """
    field, _, part = name.partition(".")
    if name in obeyed or (field in obeyed and part in PARTS.get(field, ())):
        return OBEYED
    # Parts of what nobody reads are not looked at; other names have a dot in them.
    if part and field in _EVERYWHERE and field not in obeyed:
        return UNKNOWN
    if name in _REASONS or name in HARMLESS_AT.get(endpoint, ()):
        return IGNORED
    refused = REFUSED.get(name)
    if refused is not None and (not refused.where or endpoint in refused.where):
        return REFUSES
    return REFUSES if refused is not None or name in _EVERYWHERE else UNKNOWN


def _note(name: str, fates: Collection[str]) -> str:
    notes = []
    if IGNORED in fates:
        at = [reasons[name] for reasons in HARMLESS_AT.values() if name in reasons]
        notes.append(_REASONS.get(name) or "; ".join(dict.fromkeys(at)))
    refused = REFUSED.get(name)
    if refused is not None and refused.neutral:
        notes.append("taken if " + " or ".join(f"`{_json(value)}`" for value in refused.neutral))
    if refused is not None and refused.harmless is not None:
        notes.append("taken if it asks for nothing that there would be")
    return "; ".join(notes)


def names() -> list[str]:
    """Return all fields that the tables have."""
    nested = {name for _, obeyed in columns().values() for name in obeyed}
    parts = {f"{name}.{part}" for name, parts in PARTS.items() for part in parts}
    at = {name for reasons in HARMLESS_AT.values() for name in reasons}
    return sorted(_EVERYWHERE | nested | parts | at | _REASONS.keys() | REFUSED.keys())


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _lines() -> Iterator[str]:
    heads = columns()
    rows: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for name in names():
        fates = tuple(fate(name, endpoint, obeyed) for endpoint, obeyed in heads.values())
        rows.setdefault((fates, _note(name, fates)), []).append(name)
    yield f"| fields | {' | '.join(f'`{head}`' for head in heads)} | |"
    yield "|---" * (len(heads) + 2) + "|"
    order = [OBEYED, IGNORED, REFUSES, UNKNOWN]

    def place(row: tuple[tuple[str, ...], str]) -> list[int]:
        return [order.index(cell) for cell in row[0]]

    for row in sorted(rows, key=lambda row: (place(row), rows[row])):
        fates, note = row
        yield f"| {_list(rows[row])} | {' | '.join(fates)} | {note} |"


def _json(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value).replace("'", '"') if isinstance(value, list) else str(value)


def markdown() -> str:
    """Return the table."""
    return "\n".join(_lines()) + "\n"


def main() -> None:
    """Write it."""
    path = Path(__file__).parents[3] / "docs" / "server.md"
    before, _, rest = path.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}{markdown()}{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
