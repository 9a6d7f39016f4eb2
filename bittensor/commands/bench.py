"""``bittensor bench``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from .choices import WITHOUT_A_BACKEND, ActivationMode, Zero, selected_backend
from .refusals import refusals
from .tables import print_table


def bench(
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NxK", help="Outputs x inputs of the weight; repeatable. Without it: 4096x4096."),
    ] = None,
    rows: Annotated[
        list[int] | None, typer.Option(min=1, help="Rows of the input; repeatable. Without it: 1, 8 and 128.")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            "-b",
            metavar="NAME",
            help="Backend, or one instruction set of it (cpp:avx2); repeatable. " + WITHOUT_A_BACKEND,
        ),
    ] = None,
    bits: Annotated[int, typer.Option(help="Bits of a code: 2, 4 or 8.")] = 4,
    group_size: Annotated[int, typer.Option(help="Columns that share a scale; 0 for one group a row.")] = 128,
    zero: Annotated[Zero, typer.Option(help="Kind of zero point.")] = Zero.SYMMETRIC,
    activation_mode: Annotated[
        ActivationMode, typer.Option(help="int8: round activations, fast. float: quantized weights only.")
    ] = ActivationMode.INT8,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 for torch's default.")] = 0,
    seconds: Annotated[float, typer.Option(min=0.001, help="Time for each figure.")] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Time the linear layer on this machine, beside torch's linear in float32.

    Weights have float16 scales. The same weight is used in every call: one that fits stays in the caches.

    Exit status: 0, or 2 if the arguments are wrong or a backend cannot run them.
    """
    with refusals():
        import torch

        from ..bench import time_linear
        from ..quantize_config import QuantizeConfig

        config = QuantizeConfig(bits, group_size or None, zero.value, "rtn", torch.float16, activation_mode.value)
        timings = list(
            time_linear(
                [_parse_shape(each) for each in shape or ["4096x4096"]],
                rows or [1, 8, 128],
                backend or [selected_backend()],
                config,
                threads=threads or torch.get_num_threads(),
                seconds=seconds,
            )
        )
    if as_json:
        listed = [asdict(timing) | {"times_float32": timing.times_float32} for timing in timings]
        settings = {
            "bits": bits,
            "group_size": group_size,
            "zero": zero.value,
            "activation_mode": activation_mode.value,
        }
        typer.echo(json.dumps(settings | {"threads": threads or torch.get_num_threads(), "timings": listed}, indent=2))
        return
    title = f"linear, {bits} bits, group size {group_size or 'K'}, {zero.value}, {activation_mode.value} activations"
    table = Table(title=title, title_justify="left")
    for heading in ("backend", "shape"):
        table.add_column(heading, no_wrap=True)
    for heading in ("rows", "us", "GOP/s", "GB/s of weight", "float32, us", "times float32"):
        table.add_column(heading, justify="right", overflow="fold")
    for timing in timings:
        table.add_row(
            timing.backend,
            f"{timing.out_features} x {timing.in_features}",
            str(timing.rows),
            f"{timing.microseconds:.1f}",
            f"{timing.gops:.1f}",
            f"{timing.gigabytes_per_second:.3g}",
            f"{timing.float32_microseconds:.1f}",
            f"{timing.times_float32:.2f}",
        )
    print_table(table)


def _parse_shape(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--shape: expected NxK, two counts of at least 1, got {text!r}")
    return int(parts[0]), int(parts[1])
