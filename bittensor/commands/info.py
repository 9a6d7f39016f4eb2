"""``bittensor info``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..info import Info, InstalledBackend, collect
from .tables import print_table


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Show which backend and kernels a call would use, and why.

    Loads every installed backend. One that fails is shown with its error, and the exit status is 1. One that only
    lacks the packages of its extra is shown with the extra.

    Environment: BITTENSOR_BACKEND selects a backend ("cpp", "cpp:avx2", "reference", ...); BITTENSOR_ISA caps the
    kernels of the C++ backend ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "amx").
    """
    facts = collect()
    if as_json:
        typer.echo(json.dumps(asdict(facts), indent=2))
    else:
        print_table(_info_table(facts))
    raise typer.Exit(1 if facts.errors else 0)


def _info_table(facts: Info) -> Table:
    table = Table(title=f"bittensor {facts.version}", title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    selected = facts.backend
    table.add_row("backend", Text(selected.name))
    table.add_row("backend reason", Text(selected.reason))
    for key, value in selected.details.items():
        table.add_row(Text(key), Text(value))
    if selected.error is not None:
        table.add_row("error", Text(selected.error, style="red"))
    table.add_section()
    for backend in facts.installed_backends:
        table.add_row(Text(f"installed: {backend.name}"), _describe_installed(backend))
    table.add_section()
    table.add_row("cpu", Text(facts.cpu))
    table.add_row("torch threads", str(facts.torch_threads))
    table.add_row("torch", facts.torch)
    table.add_row("python", facts.python)
    return table


def _describe_installed(backend: InstalledBackend) -> Text:
    if backend.error is not None:
        return Text(backend.error, style="red")
    if backend.missing is not None:
        return Text(backend.missing, style="dim")
    lines = [
        ", ".join(backend.operations),
        f"bits {', '.join(map(str, backend.bits))}; {backend.numerics} numerics",
        *backend.variants,
    ]
    return Text("\n".join(lines))
