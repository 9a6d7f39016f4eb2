"""The report as a table for people."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .report import EXIT_FAILED, EXIT_GREEN, Report

_COUNTS = ("expected", "executed", "skipped", "failed", "expected_failures", "examples")
_HEADINGS = {"expected_failures": "xfail"}
_COLOURS = {"green": "green", "failed": "red", "incomplete": "yellow", "partial": "yellow"}


def show(run: Report, console: Console, *, failures: bool = True) -> None:
    """Print failures first, then the table of denominators of each target, then the verdict."""
    for target in run["targets"]:
        _show_failures(target, console, failures)
    for target in run["targets"]:
        console.print(_table(target))
    machine, versions = run["machine"], run["versions"]
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['capability']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items()),
        style="dim",
        highlight=False,
    )
    totals = run["totals"]
    console.print(
        f"{_verdict(run)}: {totals['executed']} of {totals['expected']} checks executed, {totals['failed']} failed, "
        f"{totals['examples']} examples, profile {run['profile']}",
        highlight=False,
    )
    if not run["complete"]:
        reason = f"-k {run['keyword']!r} leaves out the rest" if run["keyword"] else "the rest was not run"
        console.print(
            f"[bold yellow]partial: {totals['executed']} of {totals['expected']} checks; {escape(reason)}. This is no "
            "statement about conformance.[/]",
            highlight=False,
        )


def _verdict(run: Report) -> str:
    if run["exit_code"] == EXIT_FAILED:
        return "[red]not conformant[/]"
    if run["exit_code"] != EXIT_GREEN:
        return "[yellow]incomplete[/]"
    return "[green]conformant[/]" if run["complete"] else "[yellow]the chosen checks hold[/]"


def _show_failures(target: Report, console: Console, failures: bool) -> None:
    for error in target["errors"]:
        console.print(f"[yellow]{escape(target['target'])}[/]: {escape(error)}", highlight=False)
    for check in target["checks"] if failures else ():
        if check["outcome"] == "failed":
            console.print(f"[red]FAILED[/] {escape(target['target'])} {escape(check['id'])}", highlight=False)
            console.print(escape(check["message"]), highlight=False, soft_wrap=True)


def _table(target: Report) -> Table:
    colour = _COLOURS[target["status"]]
    title = f"{escape(target['target'])}: [{colour}]{target['status']}[/] in {target['seconds']:.1f} s"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    table.add_column("capability", no_wrap=True)
    for name in _COUNTS:
        table.add_column(_HEADINGS.get(name, name), justify="right", no_wrap=True)
    for row in target["by_capability"]:
        capability = row["operation"] + (f" {row['bits']}-bit" if row["bits"] is not None else "")
        table.add_row(capability, *(str(row[name]) for name in _COUNTS), style="red" if row["failed"] else None)
    table.add_section()
    table.add_row("total", *(str(target["totals"][name]) for name in _COUNTS))
    return table
