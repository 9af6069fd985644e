"""What a grammar looks like to a sequence: a mask of tokens before each choice."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Constraint(Protocol):
    """Decides which tokens may come next, as a grammar does. Used by the engine's thread only."""

    def mask(self) -> NDArray[np.uint32] | None:
        """Return a bit mask [(dvoc + 31) / 32] of allowed tokens, or ``None`` for all."""

    def accept(self, token: int) -> None:
        """Take the token that was chosen."""
