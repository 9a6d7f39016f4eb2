"""``python -m conformance.mutants``: the share of the seeded faults that the suite finds."""

from __future__ import annotations

import argparse
import queue
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from time import monotonic

from bittensor_conformance.report import machine
from rich.console import Console

from . import record
from .fault import ROOT, CatalogueError, Fault, read_catalogue
from .judge import Verdict, judge, supported_targets
from .record import Outcome, Proof
from .workspace import BuildError, Workspace, sources_digest

SHORTEST_LIMIT = 300.0
"""Seconds that a run of the suite is given at least before it counts as one without an end."""


def main() -> int:
    """Parse the command line and run; the exit code is 0 if the suite has the teeth that it should have."""
    parser = argparse.ArgumentParser(prog="python -m conformance.mutants", description=__doc__)
    parser.add_argument("--only", action="append", metavar="TEXT", help="faults whose id or file contains it")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="faults at a time (default: 1)")
    parser.add_argument("--resume", action="store_true", help="keep the outcomes that the record has already")
    parser.add_argument("--record", type=Path, default=Path("out/mutants.json"), metavar="FILE")
    parser.add_argument("--workspace", type=Path, default=ROOT / "build" / "mutants", metavar="FOLDER")
    parser.add_argument("--list", action="store_true", help="only list the faults")
    options = parser.parse_args()
    console = Console()
    try:
        faults = selected(read_catalogue(), options.only)
        for fault in faults:
            fault.applied((ROOT / fault.file).read_text(encoding="utf-8"))
    except CatalogueError as error:
        console.print(str(error), markup=False, highlight=False)
        return 2
    if options.list:
        for fault in faults:
            console.print(f"{fault.id:44} {', '.join(fault.targets)}: {fault.about}", markup=False, highlight=False)
        return 0
    outcomes = record.read(options.record) if options.resume else {}
    known = {fault.id: fault.digest() for fault in read_catalogue()}
    outcomes = {name: each for name, each in outcomes.items() if known.get(name) == each.digest}
    waiting = [fault for fault in faults if fault.id not in outcomes]
    digest = sources_digest()
    proof = record.read_proof(options.record, digest) if options.resume else Proof(digest, {})
    try:
        run(waiting, outcomes, proof, options.workspace, options.jobs, options.record, console)
    except BuildError as error:
        console.print(f"without any fault: {error}", markup=False, highlight=False)
        return 2
    return 0 if record.show(faults, outcomes, console) else 1


def selected(faults: Iterable[Fault], only: list[str] | None) -> list[Fault]:
    """The faults that one of the texts selects, by file: consecutive ones then share builds."""
    chosen = [fault for fault in faults if not only or any(text in fault.id or text in fault.file for text in only)]
    if not chosen:
        raise CatalogueError(f"no fault has any of {only} in its id or file")
    return sorted(chosen, key=lambda fault: (fault.file, fault.targets))


def run(
    faults: list[Fault],
    outcomes: dict[str, Outcome],
    proof: Proof,
    folder: Path,
    jobs: int,
    path: Path,
    console: Console,
) -> None:
    """Judge the faults on `jobs` workspaces at a time; `outcomes`, `proof` and the record at `path` grow with each.

    Raises:
        BuildError: the sources without a fault do not compile, or are not conformant.
    """
    if not faults:
        return
    compilers = max(1, (cpu_count() or 1) // jobs)
    workspaces = [Workspace(folder.resolve() / str(number), compilers) for number in range(jobs)]
    for workspace in workspaces:
        console.print(f"building {workspace.sources.parent}", markup=False, highlight=False)
        workspace.set_up()
    affected = {target for fault in faults for target in fault.targets}
    supported = supported_targets(workspaces[0], {target.partition(":")[0] for target in affected})
    wanted = sorted(affected & set(supported))
    with ThreadPoolExecutor(jobs) as pool:
        free: queue.SimpleQueue[Workspace] = queue.SimpleQueue()
        for workspace in workspaces:
            free.put(workspace)
        lock = threading.Lock()

        def prove(target: str) -> float:
            workspace = free.get()
            verdict = judge(workspace, target, "", 3600)
            free.put(workspace)
            if verdict.finding is not None:
                raise BuildError(f"{target} is not conformant: {verdict.check}: {verdict.finding}")
            console.print(f"without any fault, {target} conforms ({verdict.seconds} s)", highlight=False)
            return verdict.seconds

        unproved = [target for target in wanted if target not in proof.seconds]
        proof.seconds.update(zip(unproved, pool.map(prove, unproved), strict=True))
        slowest = max(proof.seconds.values(), default=0.0)

        def try_fault(fault: Fault) -> None:
            workspace = free.get()
            outcome = outcome_of(fault, workspace, supported, max(SHORTEST_LIMIT, 5 * slowest))
            free.put(workspace)
            with lock:
                outcomes[fault.id] = outcome
                record.write(path, outcomes, proof, machine()["cpu"])
                found = f" by {outcome.target} {outcome.check}" if outcome.state == "killed" else ""
                seconds = f"{outcome.build_seconds:.0f} + {outcome.suite_seconds:.0f} s"
                console.print(f"{outcome.state:8} {fault.id}{found} ({seconds})", markup=False, highlight=False)

        list(pool.map(try_fault, faults))


def outcome_of(fault: Fault, workspace: Workspace, supported: list[str], limit: float) -> Outcome:
    """Build `fault` into the workspace and run the suite on its targets, until one is not conformant."""
    targets = [target for target in fault.targets if target in supported]
    if not targets:
        finding = f"this machine has none of {', '.join(fault.targets)}"
        return Outcome(fault.id, fault.digest(), "not run", None, None, finding, 0.0, 0.0)
    started = monotonic()
    verdicts: list[Verdict] = []
    try:
        with workspace.with_fault(fault):
            built = round(monotonic() - started, 1)
            for target in targets:
                verdicts.append(judge(workspace, target, fault.chapter, limit))
                if verdicts[-1].finding is not None:
                    break
    except BuildError as error:
        return Outcome(fault.id, fault.digest(), "invalid", None, None, str(error)[-600:], 0.0, 0.0)
    seconds = round(sum(verdict.seconds for verdict in verdicts), 1)
    last = verdicts[-1]
    if last.finding is None:
        return Outcome(fault.id, fault.digest(), "survived", None, None, None, built, seconds)
    return Outcome(fault.id, fault.digest(), "killed", last.target, last.check, last.finding, built, seconds)


if __name__ == "__main__":
    sys.exit(main())
