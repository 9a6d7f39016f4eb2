"""Directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside `path`, renamed to `path` when the block ends without an error.

    What it holds is on the disk by then. With an error, also KeyboardInterrupt, nothing is left.

    Raises:
        CheckpointError: `path` exists and is not an empty directory, or cannot be written.
    """
    check_free(path)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.absolute().parent))
    except OSError as error:
        raise CheckpointError(path, f"cannot be written: {error.strerror}") from None
    try:
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        temporary.chmod(0o777 & ~_umask())
        _sync(temporary)
        temporary.rename(path)
        _sync(path.absolute().parent)
    except OSError as error:
        raise CheckpointError(path, f"cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(path: Path) -> None:
    """Refuse a path that holds something already.

    Raises:
        CheckpointError: `path` is a file, or a directory that is not empty; or there is no directory to put it in.
    """
    if path.is_dir() and not path.is_symlink():
        if any(path.iterdir()):
            raise CheckpointError(path, "exists already and is not empty; choose another name, or remove it")
    elif path.exists() or path.is_symlink():
        raise CheckpointError(path, "exists already and is not a directory; choose another name")
    elif not path.absolute().parent.is_dir():
        raise CheckpointError(path, f"cannot be written: there is no directory {path.absolute().parent}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
