"""The report as a table for people."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .report import EXIT_FAILED, EXIT_GREEN, Report

_COUNTS = ("expected", "executed", "skipped", "failed", "expected_failures", "examples")
_HEADINGS = {"expected_failures": "xfail"}
_COLOURS = {"green": "green", "failed": "red", "incomplete": "yellow"}


def show(run: Report, console: Console) -> None:
    """Print failures first, then the table of denominators, then the verdict."""
    for target in run["targets"]:
        _show_failures(target, console)
    for target in run["targets"]:
        console.print(_table(target))
    machine, versions = run["machine"], run["versions"]
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['capability']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items()),
        style="dim",
        highlight=False,
    )
    verdict = {EXIT_GREEN: "[green]conformant[/]", EXIT_FAILED: "[red]not conformant[/]"}
    verdict_text = verdict.get(run["exit_code"], "[yellow]incomplete[/]")
    totals = run["totals"]
    console.print(
        f"{verdict_text}: {totals['executed']} of {totals['expected']} checks "
        f"executed, {totals['failed']} failed, {totals['examples']} examples, profile {run['profile']}"
        + (f", selected by -k {escape(repr(run['keyword']))}" if run["keyword"] else "")
    )


def _show_failures(target: Report, console: Console) -> None:
    for error in target["errors"]:
        console.print(f"[yellow]{escape(target['target'])}[/]: {escape(error)}", highlight=False)
    for check in target["checks"]:
        if check["outcome"] == "failed":
            console.print(f"[red]FAILED[/] {escape(target['target'])} {escape(check['id'])}", highlight=False)
            console.print(escape(check["message"]), highlight=False, soft_wrap=True)


def _table(target: Report) -> Table:
    colour = _COLOURS[target["status"]]
    table = Table(title=f"{escape(target['target'])}: [{colour}]{target['status']}[/] in {target['seconds']:.1f} s")
    table.add_column("capability", no_wrap=True)
    for name in _COUNTS:
        table.add_column(_HEADINGS.get(name, name), justify="right")
    for row in target["by_capability"]:
        capability = row["operation"] + (f" {row['bits']}-bit" if row["bits"] is not None else "")
        table.add_row(capability, *(str(row[name]) for name in _COUNTS), style="red" if row["failed"] else None)
    table.add_section()
    table.add_row("total", *(str(target["totals"][name]) for name in _COUNTS))
    return table
