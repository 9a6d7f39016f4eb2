"""The seeded faults fit the sources, and the program that applies them judges what it sees."""

from __future__ import annotations

import json
import queue
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from rich.console import Console

from conformance.mutants import page, record
from conformance.mutants.build import Build
from conformance.mutants.campaign import Campaign
from conformance.mutants.fault import KERNELS, ROOT, CatalogueError, Fault, read_catalogue
from conformance.mutants.judge import Machine, judge
from conformance.mutants.process import Deadline, OutOfTimeError
from conformance.mutants.record import Outcome, Proof
from conformance.mutants.workspace import Workspace

FAULT = Fault("id", "about", "bittensor/checks.py", "old text", "new", ("reference",), "test_arguments")
TARGETS = {"reference", "cpp", *(f"cpp:{isa}" for isa in ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "amx"))}


def test_every_fault_fits_its_file_once() -> None:
    stale = []
    for fault in read_catalogue():
        try:
            fault.applied((ROOT / fault.file).read_text(encoding="utf-8"))
        except (CatalogueError, OSError) as error:
            stale.append(str(error))
    assert not stale, "the sources have changed; change these faults with them:\n  " + "\n  ".join(stale)


def test_faults_are_everywhere() -> None:
    faults = read_catalogue()
    assert len(faults) >= 60
    assert {target for fault in faults for target in fault.targets} == TARGETS
    files = {fault.file for fault in faults}
    kernels = {path.relative_to(ROOT).as_posix() for path in (ROOT / KERNELS).glob("*.hpp")}
    unjudged = {"planes.hpp"}  # a loop and nothing else
    assert kernels - files == {f"{KERNELS}{name}" for name in unjudged}
    assert all(fault.kernels == () or "cpp" not in fault.kernels for fault in faults), "kernels belong to variants"


@pytest.mark.parametrize("text", ["nothing of it", "old text and old text"])
def test_a_stale_fault_is_refused(text: str) -> None:
    with pytest.raises(CatalogueError, match="expected its old text once"):
        FAULT.applied(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chapter": "test_none"}, "no chapter test_none"),
        ({"new": "old text"}, "changes nothing"),
        ({"targets": []}, "affects nobody"),
        ({"color": "red"}, "color"),
    ],
)
def test_a_malformed_catalogue_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    entry = {"id": "id", "about": "a", "file": "f", "old": "old text", "new": "b", "targets": ["cpp"],
             "chapter": "test_arguments", **change}  # fmt: skip
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in entry.items())
    (tmp_path / "faults.toml").write_text(f"[[fault]]\n{lines}\n")
    with pytest.raises(CatalogueError, match=message):
        read_catalogue(tmp_path)


def test_a_fault_comes_and_goes(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, Build(tmp_path / "sound", Deadline()))
    path = workspace.sources / FAULT.file
    path.parent.mkdir(parents=True)
    path.write_text("some old text")

    def interrupted() -> None:
        with workspace.with_fault(FAULT):
            assert path.read_text() == "some new"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "some old text"


def test_only_what_a_fault_changes_is_compiled_again(tmp_path: Path) -> None:
    sound = Toolchain(tmp_path / "sound")
    workspace = Workspace(tmp_path / "0", sound)
    workspace.set_up()
    file, old = "backends/cpp/src/pack.cpp", "// Packing and unpacking of matrices"
    source, fault = workspace.sources / file, replace(FAULT, file=file, old=old, new="// faulty", targets=("cpp",))
    library = workspace.sources / "backends/cpp/bittensor_cpp/libbittensor.so"
    assert library.read_text() == "pack other"
    with workspace.with_fault(fault):
        assert "// faulty" in source.read_text()
        assert library.read_text() == "faulty other"
        assert (sound.outcome / "libbittensor.so").read_text() == "pack other", "no workspace but its own has the fault"
    assert library.read_text() == "pack other"


class Toolchain(Build):
    """A build without a compiler: two objects, of which one is of pack.cpp, and a library of both."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Deadline())
        self.outcome = folder / "build"
        self.outcome.mkdir(parents=True)
        for name, text in (("pack.o", "pack"), ("other.o", "other"), ("libbittensor.so", "pack other")):
            (self.outcome / name).write_text(text)

    def objects_of(self, fault: Fault) -> list[str]:
        return ["pack.o"]

    def command(self, output: str) -> str:
        source = f"{self.folder}/sources/backends/cpp/src/pack.cpp"
        return {
            "pack.o": f"grep -o faulty {source} > pack.o",
            "libbittensor.so": "echo $(cat pack.o other.o) | tr -d '\\n' > libbittensor.so",
        }[output]


@pytest.mark.parametrize(
    ("script", "finding", "check"),
    [
        ("""write({"status": "green", "errors": [], "failed": None})""", None, None),
        (
            """write({"status": "failed", "errors": [], "failed": {"check": "c/x", "message": "1 != 2\\nmore"}})""",
            "1 != 2",
            "c/x",
        ),
        ("""write({"status": "incomplete", "errors": ["lost"], "failed": None})""", "incomplete: lost", None),
        ("""at("c/y"); os.kill(os.getpid(), 11)""", "the process ended with SIGSEGV.", "c/y"),
        ("""sys.exit("ImportError: no")""", "the process ended with exit code 1. ImportError: no", None),
    ],
)  # fmt: skip
def test_whatever_ends_the_suite_is_a_verdict(
    script: str, finding: str | None, check: str | None, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    head = f"#!{sys.executable}\nimport json, os, pathlib, sys, time\npath = pathlib.Path(sys.argv[-2])\n"
    steps = "write = lambda result: path.write_text(json.dumps(result))\nat = path.with_suffix('.check').write_text\n"
    python.write_text(head + steps + script)
    python.chmod(0o755)
    workspace: Any = SimpleNamespace(python=python)
    verdict = judge(workspace, "cpp", "test_arguments", 60, Deadline(), tmp_path)
    assert (verdict.finding, verdict.check) == (finding, check)


def test_a_suite_without_an_end_is_ended(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nsleep 600\n")
    python.chmod(0o755)
    workspace: Any = SimpleNamespace(python=python)
    verdict = judge(workspace, "cpp", "test_arguments", 0.2, Deadline(), tmp_path)
    assert verdict.finding == "the process ended with no end after 0 s."
    with pytest.raises(OutOfTimeError):
        judge(workspace, "cpp", "test_arguments", 60, Deadline(0.2), tmp_path)


class Trials(Campaign):
    """A campaign whose faults and targets come to what `ends` says, without a workspace."""

    ends: ClassVar[dict[str, Exception | record.State]] = {}

    def run(self, faults: list[Fault]) -> None:
        self._free = queue.SimpleQueue()
        self._free.put(Workspace(self.folder, Build(self.folder, self.deadline)))
        self._machine = Machine("a processor", [])
        self._lock = threading.Lock()
        for fault in faults:
            self._try(fault, {})

    def _outcome_of(self, fault: Fault, workspace: Workspace, limit: float) -> Outcome:
        end = self.ends[fault.id]
        if isinstance(end, Exception):
            raise end
        return outcome(end, fault.id)


def campaign(folder: Path, deadline: Deadline) -> Trials:
    return Trials(folder, 1, folder / "record.json", {}, Proof("digest", {}), deadline, Console(quiet=True))


def test_a_trial_that_goes_wrong_ends_no_other(tmp_path: Path) -> None:
    trials = campaign(tmp_path, Deadline())
    trials.ends = {"a": "killed", "b": OSError("disk full"), "c": OutOfTimeError(), "d": "survived"}  # type: ignore[misc]
    trials.unsound.add("cpp")
    trials.run([*(replace(FAULT, id=name) for name in "abcd"), replace(FAULT, id="a", targets=("cpp",))])
    assert trials.untried == {"a": "cpp may fail without it", "b": "OSError: disk full", "c": "the time was over"}
    assert {name: each.state for name, each in record.read(trials.path).items()} == {"a": "killed", "d": "survived"}
    assert all(each.tried == record.here_and_now("a processor") for each in trials.outcomes.values())
    assert trials._free.qsize() == 1, "the workspace is free again"
    assert not record.show([replace(FAULT, id="a")], trials.outcomes, trials.untried, Console(quiet=True))


def test_nothing_begins_after_the_end(tmp_path: Path) -> None:
    trials = campaign(tmp_path, Deadline(0.0))
    trials.ends = {"a": "killed"}  # type: ignore[misc]
    trials.run([replace(FAULT, id="a")])
    assert (trials.untried, trials.outcomes) == ({"a": "the time was over"}, {})


def outcome(state: record.State, id_: str = "id") -> Outcome:
    return Outcome(id_, FAULT.digest(), state, None, None, None, 0.0, 0.0)


def test_a_record_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    outcomes = {name: outcome(state, name) for name, state in (("a", "killed"), ("b", "survived"), ("c", "not run"))}
    record.write(path, outcomes, Proof("digest", {"cpp": 12.5}))
    assert record.read(path) == outcomes
    assert record.read_proof(path, "digest").seconds == {"cpp": 12.5}
    assert record.read_proof(path, "another").seconds == {}
    assert json.loads(path.read_text())["score"] == 0.5


@pytest.mark.parametrize(
    ("states", "survives", "good"),
    [
        (["killed"] * 20, None, True),
        (["killed"] * 19 + ["survived"], None, False),
        (["killed"] * 19 + ["survived"], "it changes no result", True),
        (["killed"] * 9 + ["survived"], "it changes no result", False),
        (["killed"] * 20 + ["invalid"], None, False),
        (["killed"] * 20 + ["not run"], None, True),
        (["not run"], None, False),
    ],
)
def test_the_goal(states: list[record.State], survives: str | None, good: bool) -> None:
    faults = [replace(FAULT, id=str(i), survives=survives if state == "survived" else None)
              for i, state in enumerate(states)]  # fmt: skip
    outcomes = {fault.id: outcome(state, fault.id) for fault, state in zip(faults, states, strict=True)}
    assert record.show(faults, outcomes, {}, Console(quiet=True)) is good


def test_the_page_shows_the_record_that_is_kept() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    abouts = {fault.id: fault.about for fault in read_catalogue()}
    assert text == page.page(text, page.read(), abouts), "run python -m conformance.mutants.page"


def test_the_page_counts_the_faults_itself(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    killed = [replace(outcome("killed", str(i)), check="test_a/b" if i else None) for i in range(3)]
    outcomes = {each.id: each for each in (*killed, outcome("survived", "s"), outcome("not run", "n"))}
    outcomes["s"] = replace(outcomes["s"], tried="another day")
    record.write(path, outcomes, Proof("digest", {}))
    text = " ".join(page.section(page.read(path), {"s": "It is wrong."}).split())
    assert "4 faults were tried and 3 found: **75.0 %**." in text
    for words in ("- 1 on another day", "for 1 the", "| `test_a` | 2 |", "- `s`: It is wrong."):
        assert words in text
    path.write_text(path.read_text().replace("0.75", "1.0"))
    with pytest.raises(ValueError, match="score"):
        page.read(path)
    with pytest.raises(ValueError, match="lacks"):
        page.page("no marks", json.loads(path.read_text()), {})
