"""The comparison with peers: what is checked before it is timed, what a record keeps, what the table says."""

from __future__ import annotations

import importlib
import io
import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks import peers as peers_folder
from benchmarks.peers.bittensor_linear import PEERS as OURS
from benchmarks.peers.peer import Cell, Peer, Weight
from benchmarks.peers.torch_linear import PEERS as TORCH
from benchmarks.report import machine, measure, peers, peers_table, record
from benchmarks.report.measure import Rounds

CELL = Cell(32, 64, 32, 3)


class Scaled(Peer):
    """The product times a factor."""

    weight_bits = 4
    activations = "float"
    tolerance = 0.01
    packages = ()

    def __init__(self, factor: float, name: str = "scaled") -> None:
        self.factor = factor
        self.name = name

    def unsupported(self, cell: Cell) -> str | None:
        return "an odd number of rows" if self.name == "picky" and cell.rows % 2 else None

    def build(self, weight: Weight, x: torch.Tensor, threads: int) -> Callable[[], object]:
        if self.name == "broken":
            raise MemoryError("no room")
        values = weight.dequantized() * self.factor
        return lambda: (x @ values.T)[: 2 if self.name == "short" else None]


@pytest.fixture(autouse=True)
def torch_threads() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def quick_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "rate", lambda amount, call: lambda: amount / measure.timed(call, 3) / 1e9)


def measured(*given: Peer, cell: Cell = CELL) -> dict[str, peers.Timing]:
    return {row.peer: row for row in peers.measure(cell, given, threads=1, rounds=Rounds(3), isa="scalar")}


def test_weight_means_what_it_says() -> None:
    weight = Weight.random(CELL, seed=0)
    n, k = 5, 37
    expected = weight.scales[n, k // 32] * (weight.codes[n, k].float() - 8)
    assert weight.dequantized()[n, k] == expected
    assert weight.blocks.codes[n, k // 32, k % 32] == weight.codes[n, k]
    assert torch.equal(weight.scales, weight.scales.half().float())
    assert torch.equal(weight.scales, weight.scales.bfloat16().float())


def test_ours_and_torch_compute_the_task() -> None:
    rows = measured(*OURS, *TORCH)
    assert set(rows) == {peer.name for peer in (*OURS, *TORCH)} | {"limit"}
    for row in rows.values():
        assert row.status == "timed", row
        assert row.figure > 0
        assert row.quartiles[0] <= row.figure <= row.quartiles[1]
    low, median, high = rows["torch float32"].ratios["bittensor int8"]
    assert 0 < low <= median <= high
    assert "bittensor int8" not in rows["bittensor int8"].ratios


@pytest.mark.parametrize(
    ("peer", "status", "reason"),
    [
        (Scaled(1.0), "timed", None),
        (Scaled(1.03), "wrong", "relative error 0.03"),
        (Scaled(float("nan")), "wrong", "relative error nan"),
        (Scaled(1.0, "short"), "failed", "expected outputs [3, 32], got [2, 32]"),
        (Scaled(1.0, "broken"), "failed", "MemoryError: no room"),
        (Scaled(1.0, "picky"), "unsupported", "an odd number of rows"),
    ],
)
def test_only_right_results_are_timed(peer: Peer, status: str, reason: str | None) -> None:
    row = measured(peer)[peer.name]
    assert row.status == status
    assert (row.figure is not None) == (status == "timed")
    assert row.reason is None if reason is None else reason in row.reason


def test_one_wrong_output_is_found() -> None:
    reference = torch.randn(64, 64).double()
    result = reference.clone()
    result[63, 63] += 0.5
    mean, largest = peers.relative_error(result, reference)
    assert mean < 0.01
    assert largest > 8 * 0.01


def test_large_weights_are_rotated_with_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "last_level_cache", lambda: 2**25)
    assert peers.copies(Cell(4096, 4096, 32, 1), weight_bits=4) == 8
    assert peers.copies(Cell(4096, 4096, 32, 1), weight_bits=16) == 2
    assert peers.copies(Cell(4096, 4096, 32, 4), weight_bits=4) == 1
    assert peers.copies(Cell(384, 384, 32, 1), weight_bits=4) == 1


def test_rotated_weights_are_all_checked_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "ROTATED_FROM", 1)
    monkeypatch.setattr(machine, "last_level_cache", lambda: CELL.n * CELL.k)
    rows = measured(*OURS, cell=Cell(32, 64, 32, 1))
    assert {row.copies for row in rows.values()} == {4}
    assert {row.status for row in rows.values()} == {"timed"}
    turns = peers.in_turn([lambda: 1, lambda: 2])
    assert [turns(), turns(), turns()] == [1, 2, 1]


def given(name: str, **changed: Any) -> Namespace:
    settings = {"shapes": [(32, 64)], "rows": [1], "group_sizes": [32], "peers": None, "fresh": False}
    return Namespace(name=name, rounds=3, seconds=60, threads=1, **settings | changed)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(machine, "commit", lambda: "abc")
    monkeypatch.setattr(machine, "limits", lambda threads, isa: {"read GB/s": float(threads)})
    monkeypatch.setattr(peers, "installed", lambda: ([*OURS, Scaled(1.0)], {"other": "other is not installed"}))
    return tmp_path


def test_a_run_in_pieces_makes_one_record(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peers.run(given("pieces", rows=[1, 2]))
    first = json.loads((results / "pieces.json").read_text())
    peers.run(given("pieces", rows=[2, 4]))
    both = json.loads((results / "pieces.json").read_text())
    assert [row["rows"] for row in both["rows"]] == [count for count in (1, 2, 4) for _ in range(4)]
    assert both["rows"][:4] == first["rows"][:4]
    assert both["machine"]["absent"] == {"other": "other is not installed"}
    assert both["machine"]["command"].count("; ") == 1
    assert "other is not installed" in capsys.readouterr().out

    peers.run(given("pieces", rows=[8], fresh=True))
    assert {row["rows"] for row in json.loads((results / "pieces.json").read_text())["rows"]} == {8}


def test_pieces_measured_otherwise_are_refused(results: Path) -> None:
    peers.run(given("pieces"))
    before = (results / "pieces.json").read_text()
    other = given("pieces", rows=[2])
    other.rounds = 4
    with pytest.raises(ValueError, match=r"rounds was 3, is 4.*--fresh"):
        peers.run(other)
    assert (results / "pieces.json").read_text() == before
    other.rows = [1]  # nothing of the old record would remain
    peers.run(other)


def test_chosen_peers_write_nothing(results: Path) -> None:
    peers.run(given("some", peers=["scaled"]))
    assert not list(results.iterdir())
    with pytest.raises(ValueError, match="unknown or not installed"):
        peers.run(given("some", peers=["nobody"]))


def row(peer: str, figure: float, ahead: float, bits: int = 4, activations: str = "float") -> dict[str, Any]:
    place = {"n": 32, "k": 64, "group_size": 32, "rows": 1, "copies": 1, "status": "timed"}
    ratios = {name: (ahead, ahead, ahead) for name in peers.OURS if name != peer}
    return place | {
        "peer": peer,
        "figure": figure,
        "weight_bits": bits,
        "activations": activations,
        "ratios": ratios,
    }


def test_table_marks_where_we_are_behind() -> None:
    rows = [
        row("bittensor int8", 100, 1, activations="int8"),
        row("quick", 125, 0.8, activations="int8"),
        row("slow", 50, 2),
        row("wide", 200, 0.5, bits=8, activations="int8"),
        row("limit", 400, 0.25),
        row("liar", 1000, 0.1) | {"status": "wrong", "reason": "relative error 1"},
    ]
    best = peers_table.best_rivals(rows).iloc[0]
    assert (best["rival"], best["ahead"]) == ("quick", 0.8)
    assert (best["float_rival"], best["float_ahead"]) == ("slow", 2)
    assert (best["any_rival"], best["any_ahead"]) == ("wide", 0.5)
    printed = io.StringIO()
    peers_table.show("title", rows, Console(file=printed, width=220))
    assert "behind 0.80" in printed.getvalue()
    assert "behind the best rival of 4 bits in 1 of 1 cells" in printed.getvalue()
    assert "32x64 g32 M=1: liar wrong: relative error 1" in printed.getvalue()


def test_absent_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "openvino", "torchao"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, f"benchmarks.peers.{name}_linear", raising=False)
    for name in ("onnxruntime_nbits", "openvino_compressed"):
        monkeypatch.delitem(sys.modules, f"bittensor_rivals.{name}", raising=False)
    found, absent = importlib.reload(peers_folder).installed()
    assert [peer.name for peer in found] == [peer.name for peer in (*OURS, *TORCH)]
    assert absent["openvino_linear"] == "openvino is not installed"
    assert set(absent) == {"onnxruntime_linear", "openvino_linear", "torchao_linear"}


class Clock:
    """Stands in for the module `time`: sleeping takes no time, and the process is busy until it is told."""

    def __init__(self, busy_until: float) -> None:
        self.now, self.used, self.busy_until = 0.0, 0.0, busy_until

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.used

    def sleep(self, seconds: float) -> None:
        self.used += min(seconds, max(0.0, self.busy_until - self.now))
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(busy_until=0.05)
    monkeypatch.setattr(measure, "time", clock)
    return clock


def test_time_of_a_comparison_is_bounded(clock: Clock) -> None:
    def slow() -> float:
        clock.sleep(0.02)
        return 1.0

    assert len(measure.interleaved({"slow": slow}, Rounds(5)).figures["slow"]) == 5
    assert len(measure.interleaved({"slow": slow}, Rounds(1000, seconds=0.19)).figures["slow"]) == 10
    assert len(measure.interleaved({"slow": slow}, Rounds(1000, seconds=0)).figures["slow"]) == Rounds.least
    assert Rounds(12, seconds=7).times(0.5) == Rounds(6, seconds=7)


def test_samples_wait_for_spinning_threads(clock: Clock) -> None:
    taken = measure.when_idle(clock.perf_counter)
    assert 0.05 <= taken() < 0.06
    assert taken() < 0.07, "one pause is enough where nothing runs"

    clock.busy_until = 3600.0
    with pytest.raises(RuntimeError, match=r"still run 2.0 s after the last call"):
        taken()
    assert clock.now < 3.0
