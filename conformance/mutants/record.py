"""What became of each fault, as JSON and as a table."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console
from rich.table import Table

from .fault import Fault

GOAL = 0.95
"""Share of the faults that the suite must find."""

State = Literal["killed", "survived", "invalid", "not run"]


@dataclass(frozen=True)
class Outcome:
    """What became of a fault.

    Attributes:
        digest: of the fault, which says whether the outcome is still about it.
        state: "killed" if a target was not conformant, "survived" if all were, "invalid" if the fault does not
            compile, "not run" if the machine has none of its targets.
        target, check, finding: who found it, and how. The compiler's words of an invalid fault.
        seconds: of the build, and of the suite.
        tried: the date, the processor and the versions. Outcomes of earlier runs keep theirs.
    """

    id: str
    digest: str
    state: State
    target: str | None
    check: str | None
    finding: str | None
    build_seconds: float
    suite_seconds: float
    tried: str = ""


@dataclass(frozen=True)
class Proof:
    """That the sources conform without a fault.

    Attributes:
        sources: digest of the sources.
        seconds: of the suite, by target that conforms.
    """

    sources: str
    seconds: dict[str, float]


def here_and_now(processor: str) -> str:
    """What an outcome says of the run that it is from."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("torch", "hypothesis")}}
    return f"{date.today()}, {processor}, {', '.join(f'{name} {number}' for name, number in versions.items())}"


def write(path: Path, outcomes: dict[str, Outcome], proof: Proof) -> None:
    """Write the record, one outcome to a line."""
    counts = {state: sum(each.state == state for each in outcomes.values()) for state in get_args(State)}
    head: dict[str, Any] = {
        "score": score(list(outcomes.values())),
        **counts,
        "without_fault": asdict(proof),
    }
    lines = ",\n  ".join(json.dumps(asdict(outcomes[name])) for name in sorted(outcomes))
    text = json.dumps(head, indent=1)[:-2] + f',\n "faults": [\n  {lines}\n ]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole at any moment: a run may be ended while it writes.
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def read(path: Path) -> dict[str, Outcome]:
    """The outcomes of a record, by fault; none if there is no record."""
    if not path.exists():
        return {}
    return {each["id"]: Outcome(**each) for each in json.loads(path.read_text(encoding="utf-8"))["faults"]}


def read_proof(path: Path, sources: str) -> Proof:
    """What a record says of the sources with this digest."""
    if path.exists():
        proof = Proof(**json.loads(path.read_text(encoding="utf-8"))["without_fault"])
        if proof.sources == sources:
            return proof
    return Proof(sources, {})


def score(outcomes: list[Outcome]) -> float | None:
    """Killed of those that were run; None if none was."""
    run = [each for each in outcomes if each.state in ("killed", "survived")]
    return round(sum(each.state == "killed" for each in run) / len(run), 4) if run else None


def show(faults: list[Fault], outcomes: dict[str, Outcome], untried: Mapping[str, str], console: Console) -> bool:
    """Print who found how much, and the survivors; returns whether the suite has the teeth that it should have.

    It has if every fault was tried and none is invalid, at least `GOAL` of them are killed, and the catalogue explains
    every survivor. `untried` says why the run has nothing to say of a fault.
    """
    mine = [outcomes[fault.id] for fault in faults if fault.id in outcomes]
    table = Table(title="faults by chapter that found them")
    table.add_column("chapter")
    table.add_column("faults", justify="right")
    chapters: dict[str, int] = {}
    for outcome in mine:
        if outcome.state == "killed":
            chapter = (outcome.check or "").partition("/")[0] or "no check: the process ended before the first"
            chapters[chapter] = chapters.get(chapter, 0) + 1
    for chapter in sorted(chapters):
        table.add_row(chapter, str(chapters[chapter]))
    console.print(table)
    unexplained = 0
    by_id = {fault.id: fault for fault in faults}
    for outcome in mine:
        fault = by_id[outcome.id]
        if outcome.state == "survived":
            unexplained += fault.survives is None
            reason = fault.survives or "not explained"
            console.print(f"SURVIVED {fault.id}: {fault.about} ({reason})", markup=False, highlight=False)
        elif outcome.state != "killed":
            console.print(f"{outcome.state.upper()} {fault.id}: {outcome.finding}", markup=False, highlight=False)
        elif fault.survives is not None:
            console.print(f"KILLED {fault.id}, which should survive: {fault.survives}", markup=False, highlight=False)
    for name, reason in sorted(untried.items()):
        console.print(f"UNTRIED {name}: {reason}", markup=False, highlight=False)
    reached = score(mine)
    killed = sum(each.state == "killed" for each in mine)
    run = sum(each.state in ("killed", "survived") for each in mine)
    invalid = sum(each.state == "invalid" for each in mine)
    console.print(f"{killed} of {run} faults killed, {invalid} invalid, of {len(faults)} selected", highlight=False)
    return reached is not None and reached >= GOAL and not (invalid or unexplained or untried)
