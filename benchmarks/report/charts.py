"""Charts of the records, by matplotlib: as SVG that takes its ink from the page, and as PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from .records import Record

INK = "#0d1117"
"""Colour of text and axes; in the page it becomes that of the text around."""
COLOURS = ["#4c78a8", "#f58518", "#54a24b", "#e45756", "#b279a2", "#9d755d", "#72b7b2", "#eeca3b", "#bab0ac", "#ff9da6"]
"""Legible on white and on black."""
STYLE = {
    "font.family": "sans-serif",
    "font.size": 11,
    "svg.fonttype": "none",
    "svg.hashsalt": "bittensor",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#8884",
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
}
ISA_COLOURS = dict(zip(("scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "amx"), COLOURS, strict=False))
FILLED, THIN = "osD^v<>pP*XhHd8", "1234+x"
MARKERS = [*FILLED, *THIN, "$u$", "$w$", "$z$"]
"""One for each kind of kernel; thin ones are drawn by lines."""
OURS = "bittensor"


def new_figure(width: float = 7.2, height: float = 4.6) -> Figure:
    with mpl.rc_context(STYLE):
        return plt.figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure, title: str) -> str:
    """The figure as an element of a page: as wide as there is room, in the colour of the text."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg ', r"<svg \1", text, count=1)
    text = re.sub(r'height="[\d.]+pt" |width="[\d.]+pt" ', "", text, count=2)
    # Identifiers are those of a document; several figures are in one.
    prefix = re.sub(r"\W+", "-", title.lower())
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def png(figure: Figure, path: Path) -> None:
    with mpl.rc_context(STYLE):
        figure.savefig(path, dpi=144, facecolor="white")


def roofline(record: Record) -> Figure:
    """Every kernel: operations per second over operations per byte, under the limits of one thread."""
    figure = new_figure(height=6.2)
    with mpl.rc_context(STYLE):
        axes = figure.subplots()
        rows = record.rows.assign(intensity=record.rows["operations"] / record.rows["bytes"])
        rows = rows.assign(kind=[kind_of(kernel, isa) for kernel, isa in zip(rows["kernel"], rows["isa"], strict=True)])
        span = np.array([rows["intensity"].min() / 2, rows["intensity"].max() * 2])
        for level, dashes in (("L2", "-"), ("L3", "--"), ("memory", ":")):
            bandwidth = record.limits[f"read {level} GB/s"]
            axes.plot(
                span,
                bandwidth * span,
                dashes,
                color=INK,
                lw=0.9,
                alpha=0.7,
                label=f"read {level}, {bandwidth:.0f} GB/s",
            )
        for isa, colour in ISA_COLOURS.items():
            for name, style in ((f"int8 {isa} GOP/s", "-"), (f"float32 fma {isa} GFLOP/s", "--")):
                if name in record.limits:
                    axes.axhline(record.limits[name], color=colour, ls=style, lw=0.9, alpha=0.8)
        markers = dict(zip(sorted(rows["kind"].unique()), MARKERS * 3, strict=False))
        for (kind, isa), group in rows.groupby(["kind", "isa"]):
            axes.scatter(
                group["intensity"],
                group["figure"],
                s=22,
                marker=markers[kind],
                color=ISA_COLOURS[isa],
                alpha=0.85,
                lw=1 if markers[kind] in THIN else 0,
            )
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="operations per byte of operands and results",
            ylabel="10⁹ operations per second",
        )
        peaks = [figure for name, figure in record.limits.items() if not name.startswith("read")]
        axes.set_ylim(rows["figure"].min() / 2, 4 * max(peaks))
        for isa in [each for each in ISA_COLOURS if each in set(rows["isa"])]:
            axes.plot([], [], color=ISA_COLOURS[isa], lw=3, label=isa)
        for kind, marker in markers.items():
            axes.scatter([], [], marker=marker, color=INK, s=22, lw=1 if marker in THIN else 0, label=kind)
        figure.legend(loc="outside lower center", ncols=3, fontsize=8.5)
    return figure


def kind_of(kernel: str, isa: str) -> str:
    """A kernel's name without width and instruction set."""
    return re.sub(rf"(_b\d)?_{isa}$", "", kernel)


def limits(record: Record) -> Figure:
    """Ratios to what each operation is compared with, as bars."""
    rows = record.rows[::-1]
    figure = new_figure(height=1.2 + 0.3 * len(rows))
    with mpl.rc_context(STYLE):
        axes = figure.subplots()
        colours = [COLOURS[2] if met is True else COLOURS[3] if met is False else COLOURS[8] for met in rows["met"]]
        axes.barh(range(len(rows)), rows["ratio"], color=colours, height=0.7)
        labels = [f"{row['operation']}\nof {row['limit']}" for _, row in rows.iterrows()]
        axes.set_yticks(range(len(rows)), labels, fontsize=7)
        axes.set(xlabel="ratio to the limit (green: target met, red: missed, grey: no target)")
        axes.axvline(1, color=INK, lw=0.9)
    return figure


def machines(ratios: pd.DataFrame) -> Figure:
    """Ratios to the limits of each machine, a bar for each column of `ratios`."""
    figure = new_figure(height=1.4 + 0.22 * ratios.size)
    with mpl.rc_context(STYLE):
        axes = figure.subplots()
        height = 0.84 / len(ratios.columns)
        for index, name in enumerate(ratios):
            places = np.arange(len(ratios)) + (index - (len(ratios.columns) - 1) / 2) * height
            axes.barh(places, ratios[name], height, label=name, color=COLOURS[index % 10], lw=0)
        axes.set_yticks(range(len(ratios)), ratios.index, fontsize=8)
        axes.invert_yaxis()
        axes.set(xlabel="ratio to the limit of the machine")
        axes.axvline(1, color=INK, lw=0.9)
        figure.legend(loc="outside lower center", ncols=1, fontsize=8.5)
    return figure


def rivals(record: Record, shape: tuple[int, int], group_size: int) -> Figure:
    """Bars for each number of rows, one for each peer."""
    rows = record.rows
    rows = rows[(rows["n"] == shape[0]) & (rows["k"] == shape[1]) & (rows["group_size"] == group_size)]
    table = rows[rows["status"] == "timed"].pivot(index="rows", columns="peer", values="figure")
    peers = [name for name in dict.fromkeys(rows["peer"]) if name in table and name != "limit"]
    figure = new_figure(height=1.6 + 0.16 * len(peers) * len(table))
    with mpl.rc_context(STYLE):
        axes = figure.subplots()
        height = 0.86 / len(peers)
        for index, peer in enumerate(peers):
            places = np.arange(len(table)) + (index - (len(peers) - 1) / 2) * height
            hatch = "" if peer.startswith(OURS) else "////"
            axes.barh(
                places, table[peer], height, label=peer, color=COLOURS[index % 10], hatch=hatch, edgecolor="#fff8", lw=0
            )
        if "limit" in table:
            for place, limit in enumerate(table["limit"]):
                axes.plot([limit, limit], [place - 0.45, place + 0.45], color=INK, lw=1.5)
        axes.set_yticks(range(len(table)), [f"M = {m}" for m in table.index])
        axes.invert_yaxis()
        axes.set(xscale="log", xlabel="10⁹ operations per second (vertical line: limit of the machine)")
        figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
    return figure


def scaling_with_rows(record: Record, group_size: int = 128) -> Figure:
    """Operations per second over M, a line for each layer and mode of ours."""
    rows = record.rows[(record.rows["group_size"] == group_size) & (record.rows["status"] == "timed")]
    figure = new_figure()
    with mpl.rc_context(STYLE):
        axes = figure.subplots()
        shapes = list(dict.fromkeys(zip(rows["n"], rows["k"], strict=True)))
        for (n, k), colour in zip(shapes, COLOURS, strict=False):
            for mode, style in (("int8", "o-"), ("float", "s--")):
                line = rows[(rows["n"] == n) & (rows["k"] == k) & (rows["peer"] == f"{OURS} {mode}")].sort_values(
                    "rows"
                )
                axes.plot(line["rows"], line["figure"], style, color=colour, ms=4, label=f"{n}x{k} {mode}")
        axes.set(xscale="log", yscale="log", xlabel="M, rows of activations", ylabel="10⁹ operations per second")
        axes.set_xticks(sorted(rows["rows"].unique()), [str(m) for m in sorted(rows["rows"].unique())])
        axes.minorticks_off()
        figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
    return figure


def scaling_with_threads(records: Iterable[Record]) -> Figure:
    """Speed relative to one thread, a line for each M and machine."""
    figure = new_figure()
    with mpl.rc_context(STYLE):
        axes = figure.subplots()
        most = 1
        for record, style in zip(records, ("o-", "s--", "D:", "^-."), strict=False):
            for (claim, line), colour in zip(record.rows.groupby("claim", sort=False), COLOURS, strict=False):
                place = f"{record.machine['cpu']}, {record.machine['cpus']} CPUs"
                axes.plot(line["threads"], line["ratio"], style, color=colour, ms=5, label=f"{claim}, {place}")
                most = max(most, int(line["threads"].max()))
        axes.plot([1, most], [1, most], color=INK, lw=0.9, alpha=0.6, label="as many times as threads")
        axes.set(xlabel="threads", ylabel="times as fast as one thread")
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        figure.legend(loc="outside lower center", ncols=2, fontsize=8.5)
    return figure


def history(frame: pd.DataFrame) -> Figure:
    """asv's times over commits, each relative to its first."""
    figure = new_figure()
    with mpl.rc_context(STYLE):
        axes = figure.subplots()
        for name, line in frame.groupby("benchmark", sort=False):
            axes.plot(line["commit"], line["value"] / line["value"].iloc[0], "o-", ms=4, label=name)
        axes.set(ylabel="time, relative to the first commit")
        axes.tick_params(axis="x", rotation=45)
        figure.legend(loc="outside lower center", ncols=1, fontsize=7.5)
    return figure
