"""Tables on standard output."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table


def print_table(table: Table) -> None:
    """Print a table in the width of the terminal, or in its own where there is none: a pipe has no width."""
    console = Console()
    if not console.is_terminal:
        console.width = Measurement.get(console, console.options.update(width=1_000_000), table).maximum
    console.print(table)
