"""The comparison with peers as tables: from the rows of a record to one line for each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from rich.console import Console
from rich.table import Table

CELL = ["n", "k", "group_size", "rows"]
INT8, FLOAT = "bittensor int8", "bittensor float"
LIMIT = "limit"


def timed(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """The rows that were timed; `ahead_int8` and `ahead_float` say how many times as fast ours were."""
    frame = pd.DataFrame([row for row in rows if row["status"] == "timed"])
    for column, ours in (("ahead_int8", INT8), ("ahead_float", FLOAT)):
        frame[column] = [ratios[ours][1] if ours in ratios else float("nan") for ratios in frame["ratios"]]
    return frame


def figures(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """10^9 operations per second: a line for each cell, a column for each peer."""
    frame = timed(rows)
    order = list(dict.fromkeys(frame["peer"]))
    return frame.pivot(index=CELL, columns="peer", values="figure")[order]


def best_rivals(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """The fastest rival of each cell, and how many times as fast ours were.

    Columns: `rival` and `ahead` for our int8 mode among rivals of 4 bits; `float_rival` and `float_ahead` for our float
    mode among those of 4 bits that do not quantize activations; `any_rival` and `any_ahead` for our int8 mode among
    all, whatever they store.
    """
    frame = timed(rows)
    rivals = frame[~frame["peer"].isin([INT8, FLOAT, LIMIT])]
    of_4_bits = rivals[rivals["weight_bits"] == 4]
    kinds = {
        "": (of_4_bits, "ahead_int8"),
        "float_": (of_4_bits[of_4_bits["activations"] == "float"], "ahead_float"),
        "any_": (rivals, "ahead_int8"),
    }
    columns = {}
    for prefix, (among, ahead) in kinds.items():
        best = among.loc[among.groupby(CELL)["figure"].idxmax()].set_index(CELL)
        columns |= {f"{prefix}rival": best["peer"], f"{prefix}ahead": best[ahead]}
    return pd.DataFrame(columns)


def show(title: str, rows: Sequence[Mapping[str, object]], console: Console | None = None) -> None:
    """Prints a line for each cell, and what was not timed with the reasons."""
    console = console or Console(width=220)
    speeds = figures(rows)
    rivals = best_rivals(rows).reindex(speeds.index)
    rotated = {tuple(row[name] for name in CELL) for row in rows if row["peer"] == LIMIT and row["copies"] > 1}
    table = Table(title=f"{title}: GOP/s, median over rounds")
    headings = [
        "N x K",
        "g",
        "M",
        *speeds.columns,
        "best of 4 bits",
        "int8 /",
        "best float",
        "float /",
        "best of all",
        "int8 /",
    ]
    for heading in headings:
        table.add_column(
            heading, justify="left" if heading in {"best of 4 bits", "best float", "best of all"} else "right"
        )
    for cell, speed in speeds.iterrows():
        n, k, group_size, count = cell
        best = rivals.loc[cell]
        table.add_row(
            f"{n}x{k}",
            str(group_size),
            f"{count}*" if cell in rotated else str(count),
            *("" if pd.isna(value) else f"{value:.0f}" for value in speed),
            *named(best["rival"], best["ahead"]),
            *named(best["float_rival"], best["float_ahead"]),
            *named(best["any_rival"], best["any_ahead"]),
        )
    console.print(table)
    console.print(
        "* weights rotated, so that they come from memory. limit: the peak of int8 byte products; for *, reading "
        "codes and scales. int8 / and float /: our mode as a multiple of that rival; behind where below 1."
    )
    behind = rivals[rivals["ahead"] < 1]
    console.print(f"int8 mode behind the best rival of 4 bits in {len(behind)} of {len(rivals)} cells")
    for row in rows:
        if row["status"] != "timed":
            place = "{n}x{k} g{group_size} M={rows}".format(**row)
            console.print(f"{place}: {row['peer']} {row['status']}: {row['reason']}")


def named(rival: object, ahead: float) -> tuple[str, str]:
    """A rival and our multiple of it, marked where we are behind; empty where there is none."""
    if pd.isna(rival):
        return "", ""
    if pd.isna(ahead):
        return str(rival), ""
    return str(rival), f"[bold red]behind {ahead:.2f}[/]" if ahead < 1 else f"[green]{ahead:.2f}[/]"
