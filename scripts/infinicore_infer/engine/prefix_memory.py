"""Counts the KV memory of remembered prefixes, whose caches share blocks with each other."""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import count

# Whose work the tokens of a cache are: pairs of a token and of a computation that went on from
# there, in order. A duplicate begins with the pairs of what it was made from, and its tokens lie in
# the same memory.
Lineage = tuple[tuple[int, int], ...]


def cut(lineage: Lineage, length: int) -> Lineage:
    """Return the lineage of a duplicate of so many tokens."""
    return tuple(part for part in lineage if part[0] < length)


class PrefixMemory:
    """How many tokens of KV memory caches take together.

    What lies between two caches of a tree does not tell: requests may have computed the same tokens
    side by side, and a cache may share memory with any other of its branch, or with one that was
    forgotten. So memory is told by who computed it. Of one computation every cache holds its tokens
    from the first one on, so all together take what the longest takes.

    Attributes:
        tokens: The tokens, each counted once for each place in memory.
    """

    def __init__(self) -> None:
        """Count nothing yet."""
        self.tokens = 0
        self._numbers = count()
        self._ends: dict[int, list[int]] = {}  # by computation, in order

    def computed(self, lineage: Lineage, length: int) -> Lineage:
        """Return the lineage of a cache that goes on after a duplicate of so many tokens."""
        return (*cut(lineage, length), (length, next(self._numbers)))

    def add(self, lineage: Lineage, length: int) -> None:
        """Count a cache of so many tokens."""
        for begin, end, computation in _parts(lineage, length):
            ends = self._ends.setdefault(computation, [])
            before = ends[-1] if ends else begin
            insort(ends, end)
            self.tokens += ends[-1] - before

    def remove(self, lineage: Lineage, length: int) -> None:
        """Count a cache no longer that was added."""
        for begin, end, computation in _parts(lineage, length):
            ends = self._ends[computation]
            before = ends[-1]
            del ends[bisect_left(ends, end)]
            self.tokens -= before - (ends[-1] if ends else begin)
            if not ends:
                del self._ends[computation]


def _parts(lineage: Lineage, length: int) -> list[tuple[int, int, int]]:
    """Return the parts of a cache of so many tokens: first token, end, computation."""
    kept = cut(lineage, length)
    ends = [*(begin for begin, _ in kept[1:]), length]
    return [(begin, end, who) for (begin, who), end in zip(kept, ends, strict=True)]
