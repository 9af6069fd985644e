"""Errors that say which value of the caller's is wrong, for those who know it by another name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class FieldError(ValueError):
    """A value that the caller gave is wrong.

    Attributes:
        field: Its name here, such as ``temperature`` or ``messages[2]``.
        code: A short name of what is wrong, for programs; ``None``: there is none.
    """

    def __init__(
        self, field: str, problem: str, *, joint: str = ": ", code: str | None = None
    ) -> None:
        """Compose the message.

        Args:
            field: The value's name.
            problem: What is wrong with it, with the value and the limit.
            joint: What stands between the two.
            code: As the attribute.
        """
        super().__init__(f"{field}{joint}{problem}")
        self.field = field
        self.code = code
        self._rest = f"{joint}{problem}"

    def message(self, name: str) -> str:
        """Return the message about the value by another name."""
        return f"{name}{self._rest}"


@contextmanager
def about(field: str) -> Iterator[None]:
    """Let errors that name no field name this one.

    Raises:
        FieldError: In place of any other ``ValueError``.
    """
    try:
        yield
    except FieldError:
        raise
    except ValueError as error:
        raise FieldError(field, str(error)) from error
