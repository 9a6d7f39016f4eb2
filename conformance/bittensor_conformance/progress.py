"""How far a run is: bars on a terminal, a line now and then elsewhere. Failures are named when they happen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_LINES = 4
"""Lines that a target gets where there is no terminal."""


class RunProgress:
    """Shows the events of several targets side by side; a context manager."""

    def __init__(self, targets: Sequence[str], console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._total = dict.fromkeys(targets, 0)
        self._done = dict.fromkeys(targets, 0)
        if console.is_terminal:
            columns = (TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, TextColumn("{task.fields[at]}", style="dim"), console=console)

    def __enter__(self) -> RunProgress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, target: str, event: dict[str, Any]) -> None:
        """An event of the session that runs `target`."""
        if "selected" in event:
            self._begin(target, len(event["selected"]))
        elif "at" in event and self._bars is not None and target in self._tasks:
            self._bars.update(self._tasks[target], at=escape(event["at"]))
        elif "record" in event:
            record = event["record"]
            if record["outcome"] == "failed":
                self._console.print(f"[red]FAILED[/] {escape(target)} {escape(record['id'])}", highlight=False)
            self._advance(target)

    def _begin(self, target: str, count: int) -> None:
        self._total[target] = self._done[target] + count
        if self._bars is None:
            self._console.print(f"{target}: {count} checks", highlight=False, markup=False)
        elif target in self._tasks:
            self._bars.update(self._tasks[target], total=self._total[target])
        else:
            self._tasks[target] = self._bars.add_task(escape(target), total=count, at="")

    def _advance(self, target: str) -> None:
        self._done[target] += 1
        done, total = self._done[target], max(1, self._total[target])
        if self._bars is not None and target in self._tasks:
            self._bars.update(self._tasks[target], completed=done, at="")
        elif done * _LINES // total > (done - 1) * _LINES // total:
            self._console.print(f"{target}: {done} of {total} checks", highlight=False, markup=False)
