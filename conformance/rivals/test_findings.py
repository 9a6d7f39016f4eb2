"""Each finding is as its file says, on the libraries that are installed: one that no longer holds leaves the page."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from .page import FINDINGS, Finding
from .processors import processor


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_finding_holds(path: Path) -> None:
    finding = Finding.read(path)
    pytest.importorskip(finding.library, reason="pip install 'packed-bittensor[rivals]'")
    here = processor()
    try:
        runpy.run_path(str(path))
    except AssertionError:
        if here in finding.seen:
            raise
        words = "as its file says" if here in finding.unseen else "which is new"
        pytest.skip(f"seen on {', '.join(finding.seen)}, and not on {here or 'this processor'}, {words}")
    assert here not in finding.unseen, f"this finding holds on {here} as well: move it from Unseen to Seen"
