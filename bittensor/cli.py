"""The command ``bittensor``. Not imported by ``import bittensor``: typer and rich load only here."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ._distribution import __version__
from .commands.bench import bench
from .commands.conformance import conformance
from .commands.generate import generate
from .commands.info import info
from .commands.inspect import inspect
from .commands.quantize import quantize

app = typer.Typer(
    name="bittensor",
    help="Packed low-bit tensors for PyTorch on CPUs: the installation, checkpoints, language models, backends.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
for command in (info, conformance, inspect, quantize, bench, generate):
    app.command()(command)


def main() -> None:
    """Entry point of the script ``bittensor`` and of ``python -m bittensor``."""
    if sys.stdout is None:
        typer.echo("bittensor: the output cannot be written: standard output is closed", err=True)
        sys.exit(2)
    try:
        app(prog_name="bittensor")
    except OSError as error:
        if error.filename is not None:
            raise
        typer.echo(f"bittensor: the output cannot be written: {error.strerror}", err=True)
        sys.exit(2)


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
