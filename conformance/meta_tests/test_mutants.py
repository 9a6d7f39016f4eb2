"""The seeded faults fit the sources, and the program that applies them judges what it sees."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from conformance.mutants import record
from conformance.mutants.fault import KERNELS, ROOT, CatalogueError, Fault, read_catalogue
from conformance.mutants.judge import judge
from conformance.mutants.record import Outcome, Proof
from conformance.mutants.workspace import Workspace

FAULT = Fault("id", "about", "bittensor/checks.py", "old text", "new", ("reference",), "test_arguments")
TARGETS = {"reference", "cpp", *(f"cpp:{isa}" for isa in ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni"))}


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
    unjudged = {"planes.hpp", "transformer.hpp"}  # a loop and nothing else; operations that no protocol has
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
    workspace = Workspace(tmp_path, jobs=1)
    path = workspace.sources / FAULT.file
    path.parent.mkdir(parents=True)
    path.write_text("some old text")
    before = path.stat().st_mtime_ns

    def interrupted() -> None:
        with workspace.with_fault(FAULT):
            assert path.read_text() == "some new"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "some old text"
    assert path.stat().st_mtime_ns == before, "or everything would be compiled again"


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
    head = f"#!{sys.executable}\nimport json, os, pathlib, sys, time\npath = pathlib.Path(sys.argv[-1])\n"
    steps = "write = lambda result: path.write_text(json.dumps(result))\nat = path.with_suffix('.check').write_text\n"
    python.write_text(head + steps + script)
    python.chmod(0o755)
    workspace: Any = SimpleNamespace(python=python)
    verdict = judge(workspace, "cpp", "test_arguments", limit=60)
    assert (verdict.finding, verdict.check) == (finding, check)


def test_a_suite_without_an_end_is_ended(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nsleep 600\n")
    python.chmod(0o755)
    workspace: Any = SimpleNamespace(python=python)
    assert judge(workspace, "cpp", "test_arguments", limit=0.2).finding == "the process ended with no end after 0 s."


def outcome(state: record.State, id_: str = "id") -> Outcome:
    return Outcome(id_, FAULT.digest(), state, None, None, None, 0.0, 0.0)


def test_a_record_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    outcomes = {name: outcome(state, name) for name, state in (("a", "killed"), ("b", "survived"), ("c", "not run"))}
    record.write(path, outcomes, Proof("digest", {"cpp": 12.5}), "a processor")
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
    assert record.show(faults, outcomes, Console(quiet=True)) is good
