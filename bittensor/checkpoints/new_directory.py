"""Directories that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside `path`, renamed to `path` when the block ends without an error.

    What it holds is on the disk by then. With an error, also KeyboardInterrupt, nothing is left.

    Raises:
        CheckpointError: as `check_free`; or `path` cannot be written.
    """
    check_free(path)
    final = _place(path)
    begin = final.name[:50]  # of a name that may be as long as the file system allows
    temporary = final.with_name(f".{begin}.{secrets.token_hex(8)}.part")
    try:
        temporary.mkdir()  # with the permissions that the umask of the process leaves
    except OSError as error:
        raise CheckpointError(path, f"cannot be written: {error.strerror}") from None
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _sync(file)
        _sync(temporary)
        temporary.rename(final)
        _sync(final.parent)
    except OSError as error:
        raise CheckpointError(path, f"cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(path: Path) -> None:
    """Refuse a path that holds something already, or that no directory can be renamed to.

    Raises:
        CheckpointError: `path` is a file, a link, or a directory that is not empty, cannot be read, or is the current
            one or a mount point; or there is no directory to put it in.
    """
    final = _place(path)
    try:
        if final.is_symlink() or (final.exists() and not final.is_dir()):
            raise CheckpointError(path, "exists already and is not a directory; choose another name")
        if final.is_dir():
            if any(final.iterdir()):
                raise CheckpointError(path, "exists already and is not empty; choose another name, or remove it")
            if final == Path.cwd() or final.is_mount():
                kind = "the current directory" if final == Path.cwd() else "a mount point"
                raise CheckpointError(path, f"cannot be replaced: it is {kind}; name a directory that is not there yet")
        elif not final.parent.is_dir():
            raise CheckpointError(path, f"cannot be written: there is no directory {final.parent}")
    except OSError as error:
        raise CheckpointError(path, f"cannot be written: {error.strerror or error}") from None


def _place(path: Path) -> Path:
    """`path` from the root, without ``.`` and ``..``; a link at its end stays one."""
    try:
        if path.name in ("", ".."):
            return path.resolve()
        return path.parent.resolve() / path.name
    except (OSError, RuntimeError) as error:  # RuntimeError, before Python 3.13: links that lead to each other
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise CheckpointError(path, f"cannot be written: {reason}") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
