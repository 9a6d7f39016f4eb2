"""Each finding is as its file says, on the libraries that are installed: one that no longer holds leaves the page."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from .page import FINDINGS, Finding


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_finding_holds(path: Path) -> None:
    pytest.importorskip(Finding.read(path).library, reason="pip install 'packed-bittensor[rivals]'")
    runpy.run_path(str(path))
