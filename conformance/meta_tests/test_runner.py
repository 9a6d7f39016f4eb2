"""Exit codes, denominators and expected failures: what makes a run green, and what does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bittensor_conformance.report import Record, exit_code_of, of_target
from bittensor_conformance.runner import run
from bittensor_conformance.session import Request, run_session
from bittensor_conformance.targets import expand

CHECK = "1_packed_words/pack_places_every_code[4-bit]"
KEYWORD = "pack_places_every_code and 4-bit"


def _session(target: str, expected: dict[str, str], keyword: str = KEYWORD) -> dict[str, str]:
    report = run_session(Request(target, "dev", keyword, expected))
    assert report["errors"] == []
    return {check["id"]: check["outcome"] for check in report["checks"]}


def test_a_backend_stands_for_its_variants() -> None:
    assert expand(["OwnKernels", "Sound"]) == ["OwnKernels", "OwnKernels:fast", "Sound"]
    assert expand(["OwnKernels:fast", "OwnKernels"]) == ["OwnKernels:fast", "OwnKernels"]


def test_a_failure_that_is_expected_is_not_a_failure() -> None:
    assert _session("HighNibbleFirst", {CHECK: "known"}) == {CHECK: "expected failure"}


def test_an_expected_failure_that_passes_is_a_failure() -> None:
    assert _session("Sound", {CHECK: "no longer true"}) == {CHECK: "failed"}


@pytest.mark.parametrize(
    "expected",
    [{"1_packed_words/no_such_check": "reason"}, {f"Other::{CHECK}": "reason"}, {CHECK: ""}, [CHECK]],
)
def test_a_file_of_expected_failures_that_cannot_be_true_is_an_error(tmp_path: Path, expected: object) -> None:
    file = tmp_path / "expected.json"
    file.write_text(json.dumps(expected))
    assert run(["Sound"], keyword=KEYWORD, expected_failures=file) == 2


@pytest.mark.parametrize("names", [["no-such-backend"], ["Sound:no-such-variant"], []])
def test_an_unknown_backend_is_a_usage_error(names: list[str]) -> None:
    assert run(names) == 2


def test_an_unknown_profile_is_a_usage_error() -> None:
    assert run(["Sound"], profile="thorough") == 2


def test_a_selection_is_never_green(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    assert run(["Sound"], keyword=KEYWORD, report=file) == 2
    report = json.loads(file.read_text())
    assert report["exit_code"] == 2
    assert report["targets"][0]["status"] == "incomplete"
    assert report["totals"]["executed"] == 1
    assert report["totals"]["expected"] == report["totals"]["executed"] + report["totals"]["skipped"] > 100


def test_a_failure_among_a_selection_is_a_failure(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    assert run(["HighNibbleFirst"], keyword=KEYWORD, report=file) == 1
    row = next(row for row in json.loads(file.read_text())["targets"][0]["by_capability"] if row["failed"])
    assert (row["operation"], row["bits"], row["executed"], row["failed"]) == ("pack", 4, 1, 1)


def test_a_backend_that_ends_the_process_is_a_failure_that_names_the_check(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    assert run(["EndsTheProcess"], keyword="pack_every_length and 2-bit", report=file) == 1
    assert "1_packed_words/pack_every_length[2-bit]" in file.read_text()


def test_a_check_that_was_not_run_makes_a_target_incomplete() -> None:
    owed: dict[str, tuple[str, int | None]] = {"a": ("pack", 4), "b": ("pack", 4), "c": ("unpack", 4)}
    passed = [Record(name, *owed[name], outcome="passed", examples=1, seconds=0.1) for name in owed]
    assert of_target("x", {}, owed, passed, 1.0)["status"] == "green"
    report = of_target("x", {}, owed, passed[:2], 1.0)
    assert (report["status"], exit_code_of([report])) == ("incomplete", 2)
    passed[2].outcome = "skipped"
    assert of_target("x", {}, owed, passed, 1.0)["status"] == "incomplete"
    passed[2].outcome = "failed"
    assert of_target("x", {}, owed, passed, 1.0)["status"] == "failed"
    assert of_target("x", {}, {}, [], 1.0)["status"] == "incomplete"


def test_plain_pytest_runs_the_suite_from_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITTENSOR_BACKEND", "Sound")
    command = [sys.executable, "-m", "pytest", "--pyargs", "bittensor_conformance", "-q", "-k", KEYWORD]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "conformance of Sound: incomplete" in done.stdout
