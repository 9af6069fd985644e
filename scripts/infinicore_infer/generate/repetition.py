"""Notices answers that go round in circles: a pattern of tokens, several times in a row."""

from __future__ import annotations

import numpy as np


class RepetitionDetector:
    """Counts, for every length of a pattern, how long the end of a sequence has repeated itself."""

    def __init__(self, max_pattern_size: int, min_pattern_size: int, min_count: int) -> None:
        """Look for patterns of these sizes in tokens that come from now on.

        Args:
            max_pattern_size: Longest pattern looked for, in tokens; at least 1.
            min_pattern_size: Shortest one; at least 1.
            min_count: How often in a row it must come; at least 2.
        """
        self._size = max_pattern_size
        # Twice as long as needed, so that it is moved seldom. -1 is no token.
        self._tokens = np.full(2 * max_pattern_size, -1, np.int64)
        self._end = max_pattern_size
        # How many of the latest tokens equal those so many places before, longest distance first.
        self._same = np.zeros(max_pattern_size - min_pattern_size + 1, np.int64)
        sizes = np.arange(max_pattern_size, min_pattern_size - 1, -1)
        self._needed = sizes * (min_count - 1)

    def push(self, token: int) -> bool:
        """Add a token; return whether the sequence ends with a repetition now."""
        if self._end == len(self._tokens):
            self._tokens[: self._size] = self._tokens[self._size :]
            self._end = self._size
        begin = self._end - self._size
        same = self._tokens[begin : begin + len(self._same)] == token
        self._same = (self._same + 1) * same
        self._tokens[self._end] = token
        self._end += 1
        return bool((self._same >= self._needed).any())
