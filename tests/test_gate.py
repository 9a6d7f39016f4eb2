"""The regression gate: how figures become verdicts, and what it refuses to judge."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.gate import __main__ as program
from benchmarks.gate import builds, counts, times, verdict
from benchmarks.gate.builds import Build, Case, GateError
from benchmarks.gate.verdict import Change


@pytest.mark.parametrize(
    ("ratio", "status"),
    [(1.0, "same"), (1.02, "same"), (1.0201, "regression"), (0.981, "same"), (0.98, "improved"), (2.0, "regression")],
)
def test_bounds_of_instructions(ratio: float, status: str) -> None:
    assert verdict.judge(ratio, verdict.INSTRUCTIONS) == status


def test_counts_are_compared_by_name() -> None:
    changes = verdict.of_counts({"a": 1000, "b": 1000, "old": 5}, {"a": 1021, "b": 900, "added": 7})
    assert changes == [
        Change("a", "instructions", 1.021, "regression"),
        Change("b", "instructions", 0.9, "improved"),
        Change("added", "instructions", None, "new"),
        Change("old", "instructions", None, "gone"),
    ]
    assert [each.percent for each in changes] == ["+2.1 %", "-10.0 %", "", ""]


def test_times_without_a_ratio_are_of_equal_code() -> None:
    changes = verdict.of_times({"a": 1.06, "b": 1.04}, base={"a", "b", "equal"}, head={"a", "b", "equal", "added"})
    assert {(each.name, each.status) for each in changes} == {("a", "regression"), ("b", "same"), ("added", "new")}


def test_a_wanted_slowdown_names_its_reason() -> None:
    patterns = verdict.accepted_patterns(["int8_linear_*: exact sums need another pass", ""])
    slower = Change("int8_linear_b4_avx2/m1", "instructions", 1.1, "regression")
    other = Change("pack_row_b4_avx2/k100", "instructions", 1.1, "regression")
    assert [each.status for each in verdict.accept([slower, other], patterns)] == ["accepted", "regression"]
    with pytest.raises(ValueError, match="needs a pattern and a reason"):
        verdict.accepted_patterns(["int8_linear_*"])


def sample_lines(name: str, placements: list[tuple[list[float], list[float]]]) -> list[str]:
    return [
        "\t".join([name, which, *map(str, samples)])
        for pair in placements
        for which, samples in zip(("first", "second"), pair, strict=True)
    ]


def test_interruptions_and_addresses_cancel_out() -> None:
    """Samples that were interrupted do not count, and an address that is slow for each in turn does not either."""
    quick, slow, interrupted = [100.0] * 8, [120.0] * 8, [900.0] * 8
    placements = [(quick + interrupted, slow), (slow, quick + interrupted)]
    assert times.read_samples(sample_lines("case", placements)) == {"case": [pytest.approx(1.0)]}
    slower = [([100.0] * 8, [110.0] * 8 + [900.0] * 4)] * 4
    assert times.read_samples(sample_lines("case", slower)) == {"case": [pytest.approx(1.1)] * 2}


def test_two_speeds_are_no_change() -> None:
    """Addresses decide between two speeds; the median of such ratios would be one of them."""
    assert times.middle([0.91, 1.09, 0.92, 1.10] * 4 + [1.09]) == pytest.approx(1.0, abs=0.02)
    assert times.middle([1.0] * 6 + [1.5, 1.9]) == 1.0
    assert times.middle([1.1]) == pytest.approx(1.1)


def test_what_deviates_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def one_process(base: Build, head: Build, names: list[str], planted: int, *, swapped: bool) -> times.Ratios:
        asked.append((tuple(names), swapped))
        first = len(asked) <= times.PROCESSES[0]
        return {name: [{"steady": 1.0, "slower": 1.1, "unlucky": 1.2 if first else 1.0}[name]] * 4 for name in names}

    monkeypatch.setattr(times, "one_process", one_process)
    build = Build(Path())
    assert times.compare(build, build, ["steady", "slower", "unlucky"]) == {
        "steady": 1.0,
        "slower": pytest.approx(1.1),
        "unlucky": pytest.approx(1.0),
    }
    first, second, third = times.PROCESSES
    everything, deviating = ("steady", "slower", "unlucky"), ("slower", "unlucky")
    assert [names for names, _ in asked] == [everything] * first + [deviating] * (second + third)
    assert [swapped for _, swapped in asked[:4]] == [False, True, False, True]


def test_swapped_modules_give_the_same_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver is told which module it loads first, and plants the slowdown in head wherever that stands."""
    commands = []

    def output(command: list[str]) -> str:
        commands.append(command)
        base_first = "base" in command[2]
        pair = ([100.0] * 4, [110.0] * 4) if base_first else ([110.0] * 4, [100.0] * 4)
        return "\n".join(sample_lines("case", [pair] * 2))

    monkeypatch.setattr(times, "output", output)
    base, head = Build(Path("base")), Build(Path("head"))
    for swapped in (False, True):
        ratios = times.one_process(base, head, ["case"], 10, swapped=swapped)
        assert ratios == {"case": [pytest.approx(1.1)]}
    assert [command[5] for command in commands] == ["10", "-10"]


def test_totals_of_callgrind(tmp_path: Path) -> None:
    for number, total in enumerate((48632, 7), start=1):
        (tmp_path / f"out.{number}").write_text(f"events: Ir\nsummary: 1\n\ntotals: {total}\n")
    assert counts.read_dumps(tmp_path / "out", 2) == [48632, 7]
    with pytest.raises(GateError, match="more dumps than the 1 cases"):
        counts.read_dumps(tmp_path / "out", 1)
    (tmp_path / "out.2").write_text("events: Ir\n")
    with pytest.raises(GateError, match="no total in dump 2"):
        counts.read_dumps(tmp_path / "out", 2)


class Listed(Build):
    """A build that lists what it is told to, without programs."""

    def listing(self) -> tuple[set[str], list[Case]]:
        cases = [
            Case("pack_row_b4_avx2/k100", "pack_row_b4_avx2", "avx2", 100, 100, timed=False),
            Case("dot_avx512/m1", "dot_avx512", "avx512", 100, 100, timed=True),
            Case("tail_avx512/m1", "dot_avx512", "avx512", 100, 100, timed=False),
            Case("linear_avx512/m1", "", "avx512", 100, 100, timed=True),
        ]
        return {"pack_row_b4_avx2", "dot_avx512", "new_kernel_avx2"}, cases

    def digest(self, isa: str | None) -> str | None:
        return (self.folder / "library" if isa is None else self.folder / isa).as_posix().removeprefix("changed-")


@pytest.mark.parametrize(
    ("base", "compared"),
    [("same", []), ("other", ["dot_avx512/m1", "linear_avx512/m1"])],
)
def test_equal_machine_code_is_not_timed(base: str, compared: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(times, "compare", lambda base, head, names: asked.extend(names) or dict.fromkeys(names, 1.0))
    changes = program.changed_times(Listed(Path(base)), Listed(Path("same")))
    assert asked == compared
    assert [each.name for each in changes] == compared


def test_an_unmeasured_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(builds, "merge_base", lambda revision: "0" * 40)
    monkeypatch.setattr(builds, "build", lambda *places: Listed(Path("head")))
    monkeypatch.setattr("sys.argv", ["gate"])
    assert program.main() == 2
    assert "no case measures new_kernel_avx2" in capsys.readouterr().err


def gate_of(changed: float, monkeypatch: pytest.MonkeyPatch, trailers: str = "") -> int:
    """Exit status where head's one case takes `changed` times the instructions of the base's."""

    class Complete(Listed):
        def listing(self) -> tuple[set[str], list[Case]]:
            kernels, cases = super().listing()
            return kernels - {"new_kernel_avx2"}, cases

    base, head = Complete(Path("base")), Complete(Path("head"))
    monkeypatch.setattr(builds, "merge_base", lambda revision: "0" * 40)
    monkeypatch.setattr(builds, "extract", lambda revision, folder: folder)
    monkeypatch.setattr(builds, "git", lambda *arguments: trailers)
    monkeypatch.setattr(builds, "build", lambda *places: head)
    monkeypatch.setattr(builds, "build_base", lambda tree: (base, "this tree's cases"))
    monkeypatch.setattr(
        counts, "instructions", lambda build: {"pack_row_b4_avx2/k100": round(1000 * (changed if build is head else 1))}
    )
    monkeypatch.setattr("sys.argv", ["gate", "--no-times"])
    return program.main()


def test_exit_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate_of(1.01, monkeypatch) == 0
    assert gate_of(0.5, monkeypatch) == 0
    assert "improved" in capsys.readouterr().out
    assert gate_of(1.03, monkeypatch) == 1
    assert "regression" in capsys.readouterr().out
    assert gate_of(1.03, monkeypatch, trailers="pack_row_*: reads past no end\n") == 0
    assert "accepted: pack_row_*: reads past no end" in capsys.readouterr().out


def test_a_program_that_fails_is_an_error() -> None:
    with pytest.raises(GateError, match=r"failed with exit status 3:\nno such thing"):
        builds.output(["sh", "-c", "echo no such thing >&2; exit 3"])


def test_an_earlier_tree_is_extracted(tmp_path: Path) -> None:
    if subprocess.run(["git", "-C", builds.ROOT, "rev-parse"], capture_output=True, check=False).returncode != 0:
        pytest.skip("not a git repository")
    tree = builds.extract("HEAD", tmp_path / "tree")
    assert (tree / "backends/cpp/src/dispatch.cpp").is_file()
    assert not (tree / ".git").exists()


def test_every_kind_of_kernel_has_cases() -> None:
    """What the gate says when it runs, before it runs: it takes minutes, and nobody runs it for each change."""
    table = (builds.ROOT / "backends/cpp/include/bittensor/kernel_table.hpp").read_text(encoding="utf-8")
    found = re.search(r"enum class KernelKind[^{]*\{(.*?)\}", table, re.DOTALL)
    assert found is not None
    kinds = re.findall(r"^\s*(\w+),", re.sub(r"//.*", "", found[1]), re.MULTILINE)
    assert "pack_row" in kinds
    files = sorted((builds.ROOT / builds.CASES).glob("*_cases.cpp"))
    cases = "".join(file.read_text(encoding="utf-8") for file in files)
    assert [kind for kind in kinds if re.search(rf"KernelKind::{kind}\b", cases) is None] == []
