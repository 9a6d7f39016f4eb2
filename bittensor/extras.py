"""Optional parts of the package: which extra brings the packages that they need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

DISTRIBUTION = "packed-bittensor"


class MissingExtraError(ModuleNotFoundError):
    """An optional part was asked for whose packages are not installed; the message names the extra that brings them."""


@contextmanager
def extra(name: str, purpose: str, packages: tuple[str, ...]) -> Iterator[None]:
    """Import optional `packages` in this block: one that is missing gives an error that says how to install it.

    Raises:
        MissingExtraError: one of `packages` is not installed; the message names the extra `name`.

    >>> with extra("models", "reading safetensors", ("safetensors",)):
    ...     import safetensors
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in packages:
            raise
        message = f"{purpose} needs {error.name}, which is not installed: pip install '{DISTRIBUTION}[{name}]'"
        raise MissingExtraError(message, name=error.name) from None
