"""One static page of all records: ``make report``.

    python -m benchmarks.report.page [--results FOLDER] [--conformance FILE ...] [--out FOLDER]

Writes OUT/index.html, which needs nothing beside itself, and a PNG for each chart. Records of several machines stand
side by side. Reports of the conformance suite come from `bittensor conformance --report FILE`; those in OUT are taken
by default.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from . import charts, history, machine, record, records
from .peers_table import best_rivals
from .records import Record

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #57606a; --line: #d0d7de; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --faint: #9198a1; --line: #30363d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--paper); }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; } a { color: inherit; }
p.origin { color: var(--faint); font-size: .85rem; overflow-wrap: anywhere; }
figure { margin: 1rem 0; overflow-x: auto; } figure svg { display: block; width: 100%; min-width: 30rem; height: auto; }
figcaption { color: var(--faint); font-size: .9rem; position: sticky; left: 0; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; min-width: 100%; width: max-content; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; }
td { max-width: 18rem; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
code { overflow-wrap: anywhere; }
"""


class Page:
    """Collects sections, and writes the page and its pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sections: list[tuple[str, list[str]]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def section(self, title: str) -> None:
        self.sections.append((title, []))

    def add(self, html: str) -> None:
        self.sections[-1][1].append(html)

    def text(self, text: str) -> None:
        self.add(f"<p>{escape(text)}</p>")

    def origin(self, of: Record) -> None:
        self.add(f'<p class="origin">{escape(of.place)}. {escape(of.origin)}.<br><code>{escape(of.command)}</code></p>')

    def chart(self, figure: Figure, name: str, caption: str) -> None:
        charts.png(figure, self.folder / f"{name}.png")
        drawing = charts.svg(figure, name)
        plt.close(figure)
        self.add(f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>")

    def table(self, frame: pd.DataFrame) -> None:
        kinds = ["number" if pd.api.types.is_numeric_dtype(frame[column]) else "text" for column in frame]
        head = "".join(f'<th class="{kind}">{escape(str(name))}</th>' for name, kind in zip(frame, kinds, strict=True))
        body = "".join(
            "<tr>"
            + "".join(f'<td class="{kind}">{shown(value)}</td>' for value, kind in zip(row, kinds, strict=True))
            + "</tr>"
            for row in frame.itertuples(index=False)
        )
        self.add(f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')

    def write(self) -> Path:
        links = "".join(f'<a href="#{anchor(title)}">{escape(title)}</a>' for title, _ in self.sections)
        body = "".join(
            f'<section id="{anchor(title)}"><h2>{escape(title)}</h2>{"".join(parts)}</section>'
            for title, parts in self.sections
        )
        path = self.folder / "index.html"
        path.write_text(
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>BitTensor: results</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
            f"<style>{STYLE}</style></head><body><h1>BitTensor: results</h1><nav>{links}</nav>{body}</body></html>\n",
            encoding="utf-8",
        )
        return path


def anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def shown(value: object) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.4g}"
    return "" if value is None else escape(str(value))


def build(found: Sequence[Record], folder: Path, reports: Sequence[Path], asv_results: Path) -> Path:
    """The page of these records."""
    page = Page(folder)
    for of_kernels in section(page, "Roofline", records.of("kernels", found), "kernels"):
        caption = (
            "Every kernel on one thread, operands in the second-level cache. Level: peaks of int8 products (solid) "
            "and float32 multiply-adds (dashed) of each instruction set. Kernels without products count values."
        )
        page.chart(charts.roofline(of_kernels), f"roofline-{of_kernels.path.stem}", caption)
    for of_peers in section(page, "Beside other packages", records.of("peers", found), "peers"):
        add_peers(page, of_peers)
    for of_peers in section(page, "Scaling with rows", records.of("peers", found), "peers"):
        page.chart(
            charts.scaling_with_rows(of_peers),
            f"rows-{of_peers.path.stem}",
            "Groups of 128 columns, both modes of ours.",
        )
    of_threads = records.of("threads", found)
    for each in section(page, "Scaling with threads", of_threads, "threads"):
        page.table(each.rows[["operation", "threads", "figure", "unit", "ratio"]])
    if of_threads:
        page.chart(charts.scaling_with_threads(of_threads), "threads", "int8 activations, N = K = 4096.")
    for program in ("linear", "integer-matmul"):
        for each in section(page, f"Limits: {program}", records.of(program, found), program):
            page.chart(charts.limits(each), f"limits-{each.path.stem}", "Each operation beside its limit, in turn.")
            page.table(
                each.rows[["operation", "threads", "figure", "unit", "limit", "limit_figure", "ratio", "target"]]
            )
    for each in found:
        if each.program not in records.PROGRAMS:
            page.section(each.program)
            page.origin(each)
            page.table(each.rows)
    add_machines(page, found)
    add_history(page, asv_results)
    add_conformance(page, reports)
    return page.write()


def section(page: Page, title: str, found: Sequence[Record], program: str) -> Iterator[Record]:
    """A section with a part for each record, headed by its origin; or the words that there is none."""
    page.section(title)
    if not found:
        page.text(f"No record of the program {program} is in benchmarks/results yet.")
    for each in found:
        page.origin(each)
        yield each


def add_peers(page: Page, of_peers: Record) -> None:
    rows = of_peers.rows
    for n, k in dict.fromkeys(zip(rows["n"], rows["k"], strict=True)):
        for group_size in sorted(rows[(rows["n"] == n) & (rows["k"] == k)]["group_size"].unique()):
            name = f"peers-{of_peers.path.stem}-{n}x{k}-g{group_size}"
            caption = f"{n} x {k}, groups of {group_size}. Hatched: other packages."
            page.chart(charts.rivals(of_peers, (n, k), group_size), name, caption)
    page.table(best_rivals(rows.to_dict("records")).reset_index())


def add_machines(page: Page, found: Sequence[Record]) -> None:
    page.section("Machines")
    page.table(
        pd.DataFrame(
            [{"record": each.path.stem, "machine": each.place, "date": each.date, **each.limits} for each in found]
        ).dropna(axis="columns", how="all")
    )
    for program in ("linear", "integer-matmul", "threads"):
        beside = records.across_machines(found, program)
        if beside is None:
            continue
        page.text(f"{program}, beside each other:")
        page.table(beside.reset_index())
        ratios = records.across_machines(found, program, "ratio")
        if program != "threads" and len(common := ratios.dropna()):  # those of threads have a chart of their own
            page.chart(charts.machines(common), f"machines-{program}", f"{program}: what all of them measured.")


def add_history(page: Page, asv_results: Path) -> None:
    page.section("History")
    frame = history.asv_history(asv_results)
    if frame is None:
        page.text("asv has stored results of fewer than two commits here; `asv run` adds some.")
    else:
        page.chart(charts.history(frame), "history", "Times of asv's benchmarks over commits.")


def add_conformance(page: Page, reports: Sequence[Path]) -> None:
    page.section("Conformance")
    frame = history.conformance(reports)
    if frame is None:
        page.text("No report: `make conformance REPORT=out/report/conformance.json` writes one.")
    else:
        page.table(frame)


def main() -> None:
    parser = argparse.ArgumentParser(description="One static page of all records.")
    parser.add_argument("--results", type=Path, default=record.RESULTS, metavar="FOLDER")
    parser.add_argument("--conformance", type=Path, nargs="*", metavar="FILE")
    parser.add_argument("--out", type=Path, default=machine.ROOT / "out" / "report", metavar="FOLDER")
    given = parser.parse_args()
    reports = given.conformance
    if reports is None:
        reports = sorted(given.out.glob("conformance*.json"))
    print(build(records.load(given.results), given.out, reports, machine.ROOT / ".asv" / "results"))


if __name__ == "__main__":
    main()
