"""Exit codes, denominators and expected failures: what makes a run green, and what does not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from bittensor_conformance.badge import write
from bittensor_conformance.catalogue import CATALOGUE, load_chapters
from bittensor_conformance.isolation import last_words
from bittensor_conformance.profiles import PROFILES, Effort
from bittensor_conformance.report import Record, exit_code_of, of_run, of_target
from bittensor_conformance.runner import _write, run
from bittensor_conformance.session import Request, run_session
from bittensor_conformance.targets import Target, expand
from rich.console import Console

from bittensor import get_backend
from bittensor.backend import Capabilities

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


def test_a_selection_that_holds_is_partial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    assert run(["Sound"], keyword=KEYWORD, report=file) == 0
    report = json.loads(file.read_text())
    assert report["exit_code"] == 0
    assert not report["complete"]
    assert report["targets"][0]["status"] == "partial"
    totals = report["totals"]
    assert totals["executed"] == report["targets"][0]["selected"] == 1
    assert totals["expected"] == totals["executed"] + totals["skipped"] > 100
    assert report["badge"]["message"].startswith(f"incomplete: 1 of {totals['expected']} checks")
    assert report["badge"]["color"] == "orange"
    printed = capsys.readouterr().out
    assert f"partial: 1 of {totals['expected']} checks" in printed
    assert "conformant" not in printed.replace("statement about conformance", "")


@pytest.mark.parametrize(("backend", "status"), [("Sound", 2), ("HighNibbleFirst", 1)])
def test_a_report_that_cannot_be_written_loses_no_result(
    backend: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert run([backend], keyword=KEYWORD, report=tmp_path / "file" / "report.json") == status
    shown = capsys.readouterr()
    assert "checks executed" in shown.out
    assert "report.json: the report cannot be written: " in shown.err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_report_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def half(path: Path, text: str, encoding: str) -> int:
        with path.open("w", encoding=encoding) as stream:
            stream.write(text[:5])
        raise OSError(28, "No space left on device")

    file = tmp_path / "report.json"
    file.write_text("before")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        assert not _write("report", file, lambda path: path.write_text("a longer text", "utf-8"), Console(stderr=True))
    assert "report.json: the report cannot be written: No space left on device" in capsys.readouterr().err
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]
    assert _write("report", Path("/dev/null"), lambda path: path.write_text("text", "utf-8"), Console(stderr=True))
    assert Path("/dev/null").is_char_device()


def test_a_report_is_written_if_the_summary_cannot_be_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bittensor_conformance.summary.show", full)
    with pytest.raises(OSError, match="No space left"):
        run(["Sound"], keyword=KEYWORD, report=tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["exit_code"] == 0


def test_a_selection_of_nothing_is_an_error() -> None:
    assert run(["Sound"], keyword="no_such_check") == 2


def test_a_selection_gets_no_badge(tmp_path: Path) -> None:
    badge = tmp_path / "badge.svg"
    assert run(["Sound"], keyword=KEYWORD, badge=badge) == 2
    assert not badge.exists()


def test_a_badge_says_what_the_report_says(tmp_path: Path) -> None:
    badge = {"label": "conformance", "message": "3 of 4 <checks>, ci", "color": "red", "schemaVersion": 1}
    write(tmp_path / "badge.json", badge)
    assert json.loads((tmp_path / "badge.json").read_text()) == badge
    write(tmp_path / "badge.svg", badge)
    drawn = ElementTree.parse(tmp_path / "badge.svg").getroot()
    assert [each.text for each in drawn.iter() if each.tag.endswith("text")] == [badge["label"], badge["message"]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"minutes": 1.0},
        {"minutes": 0.0, "profile": "nightly"},
        {"minutes": 1.0, "max_examples": 3, "profile": "nightly"},
        {"max_examples": 0},
        {"jobs": 0},
        {"badge": Path("badge.png")},
    ],
    ids=str,
)
def test_arguments_that_make_no_sense_are_usage_errors(wrong: dict[str, Any]) -> None:
    assert run(["Sound"], keyword=None if "badge" in wrong else KEYWORD, **wrong) == 2


def test_the_number_of_examples_can_be_chosen(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    assert run(["Sound"], keyword="test_pack_matches_the_oracle and 4-bit", max_examples=7, report=file) == 0
    report = json.loads(file.read_text())
    assert (report["totals"]["examples"], report["examples"]) == (7, 7)


def test_what_one_session_has_drawn_the_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def session(target: str) -> dict[str, Any]:
        request = Request(target, "ci", "test_pack_matches_the_oracle and 4-bit", {})
        (check,) = run_session(request, drawn=tmp_path)["checks"]
        return dict(check)

    first = session("Sound")
    assert (first["outcome"], first["examples"]) == ("passed", PROFILES["ci"].examples)
    (path,) = tmp_path.glob("*.cases")
    alone = run_session(Request("HighNibbleFirst", "ci", "test_pack_matches_the_oracle and 4-bit", {}))["checks"][0]
    assert session("HighNibbleFirst")["message"] == alone["message"], "a failure is shrunk as ever"
    monkeypatch.setattr(Target, "_search", lambda *_: pytest.fail("it was drawn again"))
    second = session("Sound")
    assert (second["outcome"], second["examples"]) == ("passed", first["examples"])
    path.unlink()
    assert session("Sound")["outcome"] == "failed", "what no session has drawn is drawn"


def test_nightly_searches_as_long_as_it_is_told(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    keyword = "(test_pack_matches_the_oracle or pack_places_every_code) and 1-bit"
    assert run(["Sound"], profile="nightly", minutes=0.1, keyword=keyword, report=file) == 0
    (target,) = json.loads(file.read_text())["targets"]
    searched = next(check for check in target["checks"] if "matches_the_oracle" in check["id"])
    assert searched["seconds"] >= 5.0, "6 seconds less one short check"
    assert searched["examples"] > PROFILES["ci"].examples


def test_a_failure_among_a_selection_is_a_failure(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    assert run(["HighNibbleFirst"], keyword=KEYWORD, report=file) == 1
    row = next(row for row in json.loads(file.read_text())["targets"][0]["by_capability"] if row["failed"])
    assert (row["operation"], row["bits"], row["executed"], row["failed"]) == ("pack", 4, 1, 1)


def test_a_backend_that_ends_the_process_fails_that_check_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    assert run(["EndsTheProcess"], keyword="1_packed_words and pack and 2-bit and not unpack", report=file) == 1
    (target,) = json.loads(file.read_text())["targets"]
    outcomes = {check["id"]: check["outcome"] for check in target["checks"]}
    assert {check_id for check_id, outcome in outcomes.items() if outcome == "failed"} == {
        "1_packed_words/pack_every_length[2-bit]"
    }
    assert len(outcomes) == target["selected"] > 4, "the checks after it were run"
    message = next(check["message"] for check in target["checks"] if check["outcome"] == "failed")
    assert "SIGKILL" in message
    assert "-k 'pack_every_length and 2-bit'" in message


def test_a_backend_that_always_ends_the_process_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bittensor_conformance.runner._RESTARTS", 0)
    file = tmp_path / "report.json"
    assert run(["EndsTheProcess"], keyword="1_packed_words and pack and 2-bit", report=file) == 1
    (target,) = json.loads(file.read_text())["targets"]
    assert "gave up" in target["errors"][0]
    assert target["totals"]["executed"] < target["totals"]["expected"]


def test_a_check_that_was_not_run_makes_a_target_incomplete() -> None:
    owed: dict[str, tuple[str, int | None]] = {"a": ("pack", 4), "b": ("pack", 4), "c": ("unpack", 4)}
    passed = [Record(name, *owed[name], outcome="passed", examples=1, seconds=0.1) for name in owed]
    assert of_target("x", {}, owed, owed, passed, 1.0)["status"] == "green"
    lost = of_target("x", {}, owed, owed, passed[:2], 1.0)
    assert (lost["status"], exit_code_of([lost])) == ("incomplete", 2)
    chosen = of_target("x", {}, owed, ["a", "b"], passed[:2], 1.0)
    assert (chosen["status"], exit_code_of([chosen])) == ("partial", 0)
    assert not of_run(Effort("dev"), "a or b", [chosen])["complete"]
    assert of_target("x", {}, owed, ["a", "b"], passed[:1], 1.0)["status"] == "incomplete"
    assert of_target("x", {}, owed, owed, passed, 1.0, ["a chapter is broken"])["status"] == "incomplete"
    passed[2].outcome = "skipped"
    assert of_target("x", {}, owed, owed, passed, 1.0)["status"] == "incomplete"
    passed[2].outcome = "failed"
    assert of_target("x", {}, owed, owed, passed, 1.0)["status"] == "failed"
    assert of_target("x", {}, {}, [], [], 1.0)["status"] == "incomplete"
    assert exit_code_of([]) == 2


def _pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "--pyargs", "bittensor_conformance", "-q", *arguments]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_plain_pytest_runs_the_suite_from_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITTENSOR_BACKEND", "Sound")
    done = _pytest(tmp_path, "-k", KEYWORD)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "partial: 1 of" in done.stdout
    assert re.search(r"pack 4-bit +\d+ +1 +\d+ +0", done.stdout), "the row of the capability, with its denominator"
    assert {each.name for each in tmp_path.iterdir()} <= {".pytest_cache"}, "nothing of the suite is left behind"


def test_plain_pytest_tells_a_failure_and_its_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITTENSOR_BACKEND", "HighNibbleFirst")
    done = _pytest(tmp_path, "-k", KEYWORD)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "To reproduce:" in done.stdout
    assert "docs/numerics.md#1-packed-words" in done.stdout


def test_sections_that_failures_name_exist() -> None:
    load_chapters()
    root = Path(__file__).resolve().parents[2]
    named = {
        instance.section
        for check in CATALOGUE.values()
        for capabilities in (get_backend("Sound").capabilities, Capabilities(frozenset()))
        for instance in check.instances(capabilities, is_variant=True)
    }
    assert len(named) >= 7
    for section in named:
        page, _, anchor = section.partition("#")
        headings = re.findall(r"^#+ (.+)$", (root / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_last_words_of_a_crash_are_its_innermost_frames() -> None:
    frames = "\n".join(f'  File "frame_{number}.py"' for number in range(1000))
    printed = f"before\nFatal Python error: Segmentation fault\n{frames}\nExtension modules: {'numpy, ' * 1000}"
    assert last_words(printed).startswith('Fatal Python error: Segmentation fault\n  File "frame_0.py"')
    assert "numpy" not in last_words("Fatal Python error: Aborted\nExtension modules: numpy")
    assert last_words("a" * 5000 + "the end\n").endswith("the end")
