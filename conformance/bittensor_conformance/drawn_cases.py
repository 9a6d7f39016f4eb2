"""Cases that hypothesis has drawn, kept for the sessions of other targets.

A deterministic profile draws the same cases for a check on every target that declares the same. To draw them takes as
long as to run them, so the first session writes them down and the others read.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any


class DrawnCases:
    """The cases of one search, in a file of `folder`.

    Args:
        folder: of this run alone: what is read there was written by another of its sessions.
        search: everything that the draw depends on, as text.
    """

    def __init__(self, folder: Path, search: str) -> None:
        self._path = folder / f"{sha256(search.encode()).hexdigest()[:32]}.cases"

    def read(self) -> list[Any] | None:
        """The cases; None if no session has written them yet."""
        if not self._path.exists():
            return None
        return [pickle.loads(case) for case in pickle.loads(self._path.read_bytes())]

    def write(self, cases: Sequence[bytes]) -> None:
        """Keep pickled cases. Another session may do the same at the same time: the file is whole at any moment."""
        with tempfile.NamedTemporaryFile(dir=self._path.parent, delete=False) as file:
            file.write(pickle.dumps(list(cases)))
        Path(file.name).replace(self._path)
