"""Errors of the user, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from ..errors import BackendError, CheckpointError
from ..printable import printable


@contextmanager
def refusals() -> Iterator[None]:
    """What the user can put right ends the program with one line and status 2."""
    try:
        yield
    except (CheckpointError, BackendError, ModuleNotFoundError, ValueError) as error:
        if isinstance(error, ModuleNotFoundError) and "pip install" not in str(error):
            raise
        fail(str(error))


def fail(message: str) -> NoReturn:
    """End the program with this line and status 2."""
    typer.echo(f"bittensor: {printable(message)}", err=True)
    raise typer.Exit(2)
