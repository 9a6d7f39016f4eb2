"""The command ``bittensor``. Not imported by ``import bittensor``: typer and rich load only here."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ._distribution import __version__
from .errors import BackendError
from .info import Info, InstalledBackend, collect
from .registry import DEFAULT_BACKEND, ENVIRONMENT_VARIABLE

CONFORMANCE_EXTRA = "packed-bittensor[conformance]"
CONFORMANCE_REQUIREMENTS = frozenset({"hypothesis", "numpy", "pytest"})

app = typer.Typer(
    name="bittensor",
    help="Packed low-bit tensors for PyTorch on CPUs: inspect the installation, check a backend.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


class Profile(str, Enum):
    """How much the conformance suite tries."""

    DEV = "dev"
    CI = "ci"
    NIGHTLY = "nightly"


def main() -> None:
    """Entry point of the script ``bittensor`` and of ``python -m bittensor``."""
    app(prog_name="bittensor")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bittensor {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Show which backend and kernels a call would use, and why.

    Loads every installed backend. One that fails is shown with its error, and the exit status is 1.

    Environment: BITTENSOR_BACKEND selects a backend ("cpp", "cpp:avx2", "reference", ...); BITTENSOR_ISA caps the
    kernels of the C++ backend ("scalar", "avx2", "avx512vnni").
    """
    facts = collect()
    if as_json:
        typer.echo(json.dumps(asdict(facts), indent=2))
    else:
        Console().print(_info_table(facts))
    raise typer.Exit(1 if facts.errors else 0)


@app.command()
def conformance(
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            "-b",
            metavar="NAME",
            help="Backend to test, with its variants, or one variant (cpp:avx2); may be repeated. "
            f"Without it: {ENVIRONMENT_VARIABLE}, else {DEFAULT_BACKEND}.",
        ),
    ] = None,
    profile: Annotated[
        Profile,
        typer.Option(help="dev: quick. ci: the same examples in every run. nightly: random, many examples."),
    ] = Profile.DEV,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Write the results to FILE, as JSON.")
    ] = None,
    keyword: Annotated[
        str | None,
        typer.Option("--keyword", "-k", metavar="EXPR", help="Run only checks whose name matches EXPR, as pytest -k."),
    ] = None,
    expected_failures: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Known failures as JSON {check: reason}. One that passes, or names no check, is an error.",
        ),
    ] = None,
) -> None:
    """Hold installed backends against docs/numerics.md.

    Exit status: 0 if all that the backends declare was tested and holds, 1 if a check failed, 2 if the arguments are
    wrong or something was not run.
    """
    names = backend or [os.environ.get(ENVIRONMENT_VARIABLE, DEFAULT_BACKEND)]
    try:
        from bittensor_conformance.runner import run  # an optional part: needs the packages of its extra

        status = run(names, profile=profile.value, report=report, keyword=keyword, expected_failures=expected_failures)
    except ModuleNotFoundError as error:
        if error.name not in CONFORMANCE_REQUIREMENTS:
            raise
        _fail(f"the conformance suite needs {error.name}, which is not installed: pip install '{CONFORMANCE_EXTRA}'")
    except BackendError as error:
        _fail(str(error))
    raise typer.Exit(status)


def _fail(message: str) -> NoReturn:
    typer.echo(f"bittensor: {message}", err=True)
    raise typer.Exit(2)


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
    lines = [
        ", ".join(backend.operations),
        f"bits {', '.join(map(str, backend.bits))}; {backend.numerics} numerics",
        *backend.variants,
    ]
    return Text("\n".join(lines))
