"""``python -m conformance.mutants``: the share of the seeded faults that the suite finds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from . import record
from .build import BuildError, sources_digest
from .campaign import Campaign
from .fault import ROOT, CatalogueError, Fault, read_catalogue
from .process import Deadline, OutOfTimeError
from .record import Proof


def main() -> int:
    """Parse the command line and run; the exit code is 0 if the suite has the teeth that it should have."""
    parser = argparse.ArgumentParser(prog="python -m conformance.mutants", description=__doc__)
    parser.add_argument("--only", action="append", metavar="TEXT", help="faults whose id or file contains it")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="faults at a time (default: 1)")
    parser.add_argument("--minutes", type=float, metavar="M", help="end after so long, and leave the rest untried")
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
            line = f"{fault.id:44} {', '.join(fault.targets)}: {fault.about}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return 0
    outcomes = record.read(options.record) if options.resume else {}
    known = {fault.id: fault.digest() for fault in read_catalogue()}
    outcomes = {name: each for name, each in outcomes.items() if known.get(name) == each.digest}
    waiting = [fault for fault in faults if fault.id not in outcomes]
    digest = sources_digest()
    proof = record.read_proof(options.record, digest) if options.resume else Proof(digest, {})
    deadline = Deadline(None if options.minutes is None else 60 * options.minutes)
    folder = options.workspace.resolve()
    campaign = Campaign(folder, options.jobs, options.record, outcomes, proof, deadline, console)
    try:
        campaign.run(waiting)
    except BuildError as error:
        console.print(f"without any fault: {error}", markup=False, highlight=False)
        return 2
    except OutOfTimeError:
        console.print("the time was over before the sources were compiled")
        return 2
    good = record.show(faults, outcomes, campaign.untried, console)
    if campaign.unsound:
        return 2
    return 0 if good else 1


def selected(faults: Iterable[Fault], only: list[str] | None) -> list[Fault]:
    """The faults that one of the texts selects, by file."""
    chosen = [fault for fault in faults if not only or any(text in fault.id or text in fault.file for text in only)]
    if not chosen:
        raise CatalogueError(f"no fault has any of {only} in its id or file")
    return sorted(chosen, key=lambda fault: (fault.file, fault.targets))


if __name__ == "__main__":
    sys.exit(main())
