"""``bittensor inspect``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..printable import printable
from .refusals import refusals
from .tables import print_table


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF or safetensors file, or a directory with one.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """List the tensors of a checkpoint: type, shape, bits per weight, bytes. Reads its headers only.

    Exit status: 0, or 2 if the file cannot be read.
    """
    with refusals():
        from ..checkpoints import open_checkpoint

        checkpoint = open_checkpoint(file)
    entries = checkpoint.entries.values()
    values, nbytes = sum(entry.values for entry in entries), sum(entry.nbytes for entry in entries)
    bits = 8 * nbytes / values if values else 0.0
    if as_json:
        listed = [asdict(entry) | {"bits_per_weight": entry.bits_per_weight} for entry in entries]
        facts = {"path": str(checkpoint.path), "format": checkpoint.format, "tensors": listed}
        total = {"tensors": len(listed), "weights": values, "bytes": nbytes, "bits_per_weight": bits}
        typer.echo(json.dumps(facts | {"total": total}, indent=2))
        return
    table = Table(title=f"{checkpoint.format}, {len(entries)} tensors", title_justify="left")
    table.add_column("tensor", overflow="fold")
    table.add_column("type", no_wrap=True)
    for heading in ("shape", "bits per weight", "bytes"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in entries:
        shape = " x ".join(map(str, entry.shape))
        table.add_row(
            Text(printable(entry.name)), entry.type, shape, f"{entry.bits_per_weight:.4g}", f"{entry.nbytes:,}"
        )
    table.add_section()
    table.add_row("all", "", f"{values:,} weights", f"{bits:.4g}", f"{nbytes:,}")
    print_table(table)
