"""Every kernel of this tree against an earlier revision: instructions where they can be counted, time where not.

    python -m benchmarks.gate [--base REVISION] [--no-times]
    python -m benchmarks.gate --check-times RUNS

Builds both, prints what changed, and exits with 1 if a case became slower, with 2 if that cannot be told. A slowdown
that is wanted is accepted by a line at the end of a commit's message, "Slower: PATTERN: reason"; the pattern matches
names of cases as a shell's does. docs/benchmarks.md describes the measurement.

--check-times holds the comparison of times against itself: two copies of one build must stay within 3 percent in every
run, and a slowdown of 10 percent that is planted must be found in every case.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import builds, counts, times, verdict
from .builds import ROOT, Build, GateError
from .verdict import Change

EQUAL_CODE = 0.03
PLANTED = 10


def changed_times(base: Build, head: Build) -> list[Change]:
    """Times of what cannot be counted, unless both sides have the same machine code for it."""
    sides = [
        {case.name: case for case in side.listing()[1] if case.isa not in counts.ISAS and case.timed}
        for side in (base, head)
    ]
    different = {
        isa
        for isa in {case.isa for side in sides for case in side.values()}
        if base.digest(isa) is None or base.digest(isa) != head.digest(isa)
    }
    library_differs = base.digest(None) != head.digest(None)
    common = [
        name
        for name, case in sides[1].items()
        if name in sides[0] and (case.isa in different if case.kernel else library_differs)
    ]
    both = sum(name in sides[0] for name in sides[1])
    print(f"times: {len(common)} cases to compare, {both - len(common)} with the same machine code", flush=True)
    return verdict.of_times(times.compare(base, head, common), sides[0].keys(), sides[1].keys())


def show(changes: list[Change]) -> None:
    table = Table("case", "measure", "change", "verdict", title="What changed")
    order = ("regression", "accepted", "gone", "new", "improved")
    listed = sorted(
        (each for each in changes if each.status in order), key=lambda each: (order.index(each.status), each.name)
    )
    for each in listed:
        colour = {"regression": "red", "improved": "green"}.get(each.status, "yellow")
        table.add_row(each.name, each.measure, each.percent, f"[{colour}]{each.status}[/]")
    console = Console(width=110)
    if listed:
        console.print(table)
    total = ", ".join(
        f"{sum(each.status == status for each in changes)} {status}"
        for status in ("same", *order)
        if any(each.status == status for each in changes)
    )
    console.print(f"{len(changes)} cases: {total}")


def gate(revision: str, *, with_times: bool) -> int:
    counts.find_valgrind()  # before minutes of building
    base_revision = builds.merge_base(revision)
    print(f"base: {base_revision[:12]}, the merge base with {revision}", flush=True)
    head = builds.build(ROOT, ROOT / builds.CASES, ROOT / builds.FOLDER)
    kernels, cases = head.listing()
    if missing := verdict.unmeasured(kernels, (case.kernel for case in cases)):
        raise GateError(f"no case measures {', '.join(missing)}: add one to a {builds.CASES}/*_cases.cpp")
    with tempfile.TemporaryDirectory() as folder:
        tree = builds.extract(base_revision, Path(folder) / "tree")
        base, which = builds.build_base(tree)
        print(f"base built with {which}", flush=True)
        changes = verdict.of_counts(counts.instructions(base), counts.instructions(head))
        if with_times:
            changes += changed_times(base, head)
    trailers = builds.git("log", "--format=%(trailers:key=Slower,valueonly)", f"{base_revision}..HEAD")
    patterns = verdict.accepted_patterns(trailers.splitlines())
    changes = verdict.accept(changes, patterns)
    show(changes)
    for pattern, reason in patterns.items():
        print(f"accepted: {pattern}: {reason}")
    return int(any(each.status == "regression" for each in changes))


def check_times(runs: int) -> int:
    """Whether equal code compares as equal, and a planted slowdown as slower."""
    head = builds.build(ROOT, ROOT / builds.CASES, ROOT / builds.FOLDER)
    names = [case.name for case in head.listing()[1] if case.isa not in counts.ISAS and case.timed]
    if not names:
        raise GateError(
            f"no instruction set of this machine is compared by times: {', '.join(counts.ISAS)} are counted"
        )
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        copy = Build(Path(folder) / "copy")
        copy.folder.mkdir()
        for file in (head.module, head.driver):
            shutil.copy(file, copy.folder)
        for run in range(1, runs + 1):
            ratios = times.compare(head, copy, names)
            worst = max(ratios, key=lambda name: abs(ratios[name] - 1))
            good = abs(ratios[worst] - 1) <= EQUAL_CODE
            failed |= not good
            word = "within" if good else "NOT within"
            print(
                f"run {run}: {len(names)} cases, {word} {EQUAL_CODE:.0%}; the worst {ratios[worst]:.3f} {worst}",
                flush=True,
            )
        ratios = times.compare(head, copy, names, planted=PLANTED)
        missed = {
            name: ratio for name, ratio in ratios.items() if verdict.judge(ratio, verdict.SECONDS) != "regression"
        }
        failed |= bool(missed)
        print(f"{PLANTED} % planted: {len(names) - len(missed)} of {len(names)} cases found, {missed or 'none missed'}")
        print(f"ratios from {min(ratios.values()):.3f} to {max(ratios.values()):.3f}")
    return int(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description="Kernels of this tree against an earlier revision.")
    parser.add_argument("--base", default="main", metavar="REVISION", help="compare with the merge base of this")
    parser.add_argument("--no-times", action="store_true", help="count instructions only")
    parser.add_argument("--check-times", type=int, metavar="RUNS", help="hold the comparison of times against itself")
    given = parser.parse_args()
    try:
        if given.check_times is not None:
            return check_times(given.check_times)
        return gate(given.base, with_times=not given.no_times)
    except (GateError, ValueError) as error:
        print(f"gate: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
