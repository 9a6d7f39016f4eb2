"""Directories that appear whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch

import bittensor
from bittensor.checkpoints import open_checkpoint, save_checkpoint
from bittensor.checkpoints.new_directory import new_directory


@pytest.mark.parametrize("kind", ["file", "full", "link", "no parent"])
def test_what_exists_is_not_touched(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    if kind == "file":
        path.write_text("mine")
    elif kind == "full":
        path.mkdir()
        (path / "mine").write_text("mine")
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path = tmp_path / "absent" / "out"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(bittensor.CheckpointError, match=r"out: (exists already|cannot be written)"):
        save_checkpoint(path, {"a": torch.ones(1)})
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    save_checkpoint(tmp_path / "out", {"a": torch.ones(1)})
    assert "a" in open_checkpoint(tmp_path / "out")


@pytest.mark.parametrize("kind", [".", "..", "sub/..", "absolute", "mount point"])
def test_what_cannot_be_replaced_is_refused_at_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "above" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    reason = "cannot be replaced: it is the current directory; name a directory that is not there yet"
    path = {"..": Path("../here/../.."), "absolute": here, "sub/..": Path("../here")}.get(kind, Path(kind))
    if kind == "..":
        reason = "exists already and is not empty"
    if kind == "mount point":
        path, reason = tmp_path / "mounted", "cannot be replaced: it is a mount point"
        path.mkdir()
        monkeypatch.setattr("pathlib.Path.is_mount", lambda self: self.name == "mounted")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(bittensor.CheckpointError, match=reason), new_directory(path):
        pytest.fail("the work has begun")
    assert sorted(tmp_path.rglob("*")) == before


def test_links_that_lead_to_each_other(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(bittensor.CheckpointError, match="out: cannot be written: "):
        save_checkpoint(tmp_path / "one" / "out", {"a": torch.ones(1)})


def test_a_relative_path_and_one_that_goes_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path in ("one", "../two"):
        save_checkpoint(path, {"a": torch.ones(1)})
        assert "a" in open_checkpoint(path)


def test_permissions_are_those_that_the_umask_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a moment in which the process, and so another thread, has another umask."""
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr("os.umask", lambda mask: pytest.fail(f"the umask was set to {mask}"))
            save_checkpoint(tmp_path / "out", {"a": torch.ones(1)})
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out", *(tmp_path / "out").iterdir())}
    assert modes == {"out": 0o750, "config.json": 0o640, "model.safetensors": 0o640}


@pytest.mark.parametrize("name", ["x" * 255, "\u20ac" * 85], ids=["255 letters", "85 of 3 bytes"])
def test_names_as_long_as_they_can_be(name: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / name, {"a": torch.ones(1)})
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_directory_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(bittensor.CheckpointError, match="out: cannot be written: Permission denied"):
        save_checkpoint(tmp_path / "out", {"a": torch.ones(1)})
    with pytest.raises(bittensor.CheckpointError, match="out: Permission denied"):
        open_checkpoint(tmp_path / "out")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_half_written(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", stop)
    expected = bittensor.CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        save_checkpoint(tmp_path / "out", {"a": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(bittensor.CheckpointError, match="out: cannot be written: Permission denied"):
        save_checkpoint(tmp_path / "out", {"a": torch.ones(1)})
