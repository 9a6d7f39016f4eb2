"""The README's section "Results", generated from the committed records.

    python -m benchmarks.report.readme [--check]

Writes the section; with --check, writes nothing and exits with 1 if the README says something else than the records.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

import pandas as pd

from . import machine, records
from .peers_table import best_rivals
from .records import Record

README = machine.ROOT / "README.md"
BEGIN = "<!-- results: generated from benchmarks/results by python -m benchmarks.report.readme -->"
END = "<!-- end of results -->"
PEER_ROWS = (1, 8, 128)
MOST_THREADS = 2
"""Records of more threads are in the report only."""


def section(found: Sequence[Record]) -> str:
    """The text between the marks."""
    found = [each for each in found if each.machine["threads"] <= MOST_THREADS]
    parts = []
    for of_linear in records.of("linear", found):
        parts += linear(of_linear)
    for of_peers in records.of("peers", found):
        parts += peers(of_peers)
    for of_packing in records.of("integer-matmul", found):
        parts += packing(of_packing)
    parts.append(
        "`make report` draws all records on one page; [docs/benchmarks.md](docs/benchmarks.md) says how they are made, "
        "and\n[docs/kernels.md](docs/kernels.md) what keeps each kernel from its limit."
    )
    return "\n\n".join(parts)


def linear(of: Record) -> list[str]:
    intro = "`linear`, 4-bit weights, N = K = 4096 if not said otherwise, against what the machine can do, in turn:"
    return [intro, limits_table(of), origin(of)]


def packing(of: Record) -> list[str]:
    return ["Packing and the integer product, likewise:", limits_table(of, with_target=True), origin(of)]


def limits_table(of: Record, *, with_target: bool = False) -> str:
    rows = of.rows[of.rows["target"].notna()] if with_target else of.rows
    return markdown(
        ("operation", "figure", "limit", "ratio", "target"),
        (
            (
                row["operation"],
                f"{row['figure']:.4g} {row['unit']}",
                f"{row['limit']}: {row['limit_figure']:.4g}",
                f"{row['ratio']:.2f}",
                "" if pd.isna(row["target"]) else f"{row['target']}, {'met' if row['met'] else 'missed'}",
            )
            for _, row in rows.iterrows()
        ),
    )


def peers(of: Record) -> list[str]:
    best = best_rivals(of.rows.to_dict("records")).reset_index()
    best = best[best["rows"].isin(PEER_ROWS)]
    table = markdown(
        ("layer", "group", "M", "best rival of 4 bits", "int8 mode is", "best with float activations", "float mode is"),
        (
            (
                f"{row['n']}x{row['k']}",
                str(row["group_size"]),
                str(row["rows"]),
                *beside(row["rival"], row["ahead"]),
                *beside(row["float_rival"], row["float_ahead"]),
            )
            for _, row in best.iterrows()
        ),
    )
    return ["Beside other packages, checked and then timed in one process, in turn:", table, origin(of)]


def beside(rival: object, ahead: float) -> tuple[str, str]:
    return ("", "") if pd.isna(rival) else (str(rival), f"{ahead:.2f}x as fast")


def origin(of: Record) -> str:
    return f"{of.place}; {of.origin}: `{of.command}`"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def updated(readme: str, text: str) -> str:
    """The README with the section between the marks; ValueError without them."""
    before, mark, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"the README lacks the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description="The README's section on results.")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    given = parser.parse_args()
    old = README.read_text(encoding="utf-8")
    new = updated(old, section(records.load()))
    if given.check:
        if new != old:
            print("README.md: the results are not those of benchmarks/results: run python -m benchmarks.report.readme")
        return int(new != old)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
