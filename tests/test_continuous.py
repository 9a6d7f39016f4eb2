"""The verdict on asv's results: read from files as asv writes them, and judged."""

from __future__ import annotations

import datetime
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.gate import continuous
from benchmarks.gate.continuous import Figure

BASE, HEAD = "b" * 40, "c" * 40


def timed(value: float | None, spread: float = 0.01) -> Figure:
    interval = None if value is None else (value * (1 - spread), value * (1 + spread))
    return Figure("time", "seconds", value, interval)


@pytest.mark.parametrize(
    ("base", "head", "status"),
    [
        (timed(1.0), timed(1.05), "same"),
        (timed(1.0), timed(1.2), "regression"),
        (timed(1.0, spread=0.2), timed(1.2, spread=0.2), "same"),  # the intervals overlap
        (timed(1.2), timed(1.0), "improved"),
        (timed(1.0), timed(None), "regression"),  # fails now
        (timed(None), timed(1.0), "new"),
        (None, timed(1.0), "new"),
        (None, timed(None), None),
        (timed(1.0), timed(math.nan), None),  # skipped
        (timed(math.nan), timed(1.0), None),
        (Figure("track", "bytes", 1000), Figure("track", "bytes", 1011), "regression"),
        (Figure("track", "bytes", 1000), Figure("track", "bytes", 1009), "same"),
        (Figure("track", "bytes", 0), Figure("track", "bytes", 1), "regression"),
        (Figure("peakmemory", "bytes", 1000), Figure("peakmemory", "bytes", 1040), "same"),
        (Figure("peakmemory", "bytes", 1000), Figure("peakmemory", "bytes", 1060), "regression"),
    ],
)
def test_verdict(base: Figure | None, head: Figure, status: str | None) -> None:
    assert continuous.judge(base, head) == status


def write_results(folder: Path, commit: str, seconds: list[float | None], size: int) -> None:
    """Results of one commit, written by asv itself."""
    from asv.results import Results

    (folder / "machine").mkdir(parents=True, exist_ok=True)
    (folder / "machine" / "machine.json").write_text(json.dumps({"machine": "machine", "version": 1}))
    results = Results({"machine": "machine"}, {}, commit, 0, "3.11", "env", {})
    samples = [None if each is None else [each * (1 + 0.001 * i) for i in range(12)] for each in seconds]
    now = datetime.datetime.now(datetime.timezone.utc)

    def run(result: list[Any], samples: list[Any], params: list[Any]) -> SimpleNamespace:
        number = [1 if each else None for each in samples]
        return SimpleNamespace(
            result=result, stats=[None] * len(result), samples=samples, number=number, params=params,
            profile=None, stderr="", errcode=0,
        )  # fmt: skip

    timed_run = run([each and each[0] for each in samples], samples, [["'cpp'", "'reference'"]])
    results.add_result(BENCHMARKS["linear.time_linear"], timed_run, now, 1.0)
    results.add_result(BENCHMARKS["size.track_bytes"], run([size], [None], []), now, 1.0)
    results.save(str(folder))


BENCHMARKS = {
    "linear.time_linear": {
        "name": "linear.time_linear", "type": "time", "unit": "seconds", "params": [["'cpp'", "'reference'"]],
        "version": "1", "code": "", "param_names": ["backend"],
    },
    "size.track_bytes": {
        "name": "size.track_bytes", "type": "track", "unit": "bytes", "params": [], "version": "1", "code": "",
        "param_names": [],
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_results_of_asv_are_read(tmp_path: Path) -> None:
    write_results(tmp_path, BASE, [1.0, 2.0], 1000)
    write_results(tmp_path, HEAD, [1.5, None], 1000)
    (tmp_path / "benchmarks.json").write_text(json.dumps({**BENCHMARKS, "version": 2}))
    base, head = (continuous.read_results(tmp_path, commit) for commit in (BASE, HEAD))
    assert base["linear.time_linear('cpp')"].value == pytest.approx(1.0, rel=0.01)
    interval = base["linear.time_linear('cpp')"].interval
    assert interval is not None
    assert interval[0] < 1.006 < interval[1]
    verdicts = {each.name: each.status for each in continuous.compare(base, head)}
    assert verdicts == {
        "linear.time_linear('cpp')": "regression",
        "linear.time_linear('reference')": "regression",
        "size.track_bytes": "same",
    }
    assert continuous.read_results(tmp_path, HEAD, since=time.time() - 60).keys() == head.keys()
    assert continuous.read_results(tmp_path, HEAD, since=time.time() + 60) == {}


def runs(
    monkeypatch: pytest.MonkeyPatch, *ratios: float, arguments: Sequence[str] = ()
) -> tuple[int, list[str | None]]:
    """Exit status where a benchmark's ratios are these, one after the other, and what was asked to run."""
    asked: list[str | None] = []
    monkeypatch.setattr(continuous, "merge_base", lambda revision, tip: BASE)
    monkeypatch.setattr(continuous, "git", lambda *arguments: HEAD if "rev-parse" in arguments else "")
    monkeypatch.setattr(continuous, "run_asv", lambda commits, pattern: asked.append(pattern))

    def read_results(folder: Path, commit: str, since: float) -> dict[str, Figure]:
        assert since > time.time() - 60
        ratio = 1.0 if commit == BASE else ratios[len(asked) - 1]
        return {"a.time_a('x')": timed(ratio), "b.time_b": timed(1.0)}

    monkeypatch.setattr(continuous, "read_results", read_results)
    monkeypatch.setattr("sys.argv", ["continuous", *arguments])
    return continuous.main(), asked


def test_a_regression_is_believed_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs(monkeypatch, 1.0) == (0, [None])
    again = r"^a\.time_a\('x'\)$"
    assert runs(monkeypatch, 1.2, 1.2) == (1, [None, again])
    assert runs(monkeypatch, 1.2, 1.0) == (0, [None, again])


def test_only_what_is_asked_for_is_judged(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """asv keeps what earlier runs stored of other parameters."""
    assert runs(monkeypatch, 1.2, arguments=["--bench", "time_b"]) == (0, ["time_b"])
    assert "1 benchmarks: 1 same" in capsys.readouterr().out


def test_without_results_there_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(continuous, "merge_base", lambda revision, tip: HEAD)
    monkeypatch.setattr(continuous, "git", lambda *arguments: HEAD)
    monkeypatch.setattr("sys.argv", ["continuous"])
    assert continuous.main() == 2
    assert "nothing to compare" in capsys.readouterr().err
