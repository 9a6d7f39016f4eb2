"""Calls that must raise: which error, in which words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def refused(*errors: type[Exception], words: Sequence[str] = (), exactly: bool = False) -> Iterator[None]:
    """A block that must raise one of `errors`, no subclass of it if `exactly`, with a message that has all `words`."""
    expected = " or ".join(error.__name__ for error in errors)
    try:
        yield
    except Exception as error:
        if not isinstance(error, errors) or (exactly and type(error) not in errors):
            raise AssertionError(f"expected {expected}, got {type(error).__name__}: {error}") from error
        if missing := [word for word in words if word not in str(error)]:
            raise AssertionError(f"the message lacks {missing}: {error}") from error
        return
    raise AssertionError(f"expected {expected}, but the call returned")
