"""The group-quantized linear against the limits of the machine, in one run.

    python -m benchmarks.report.linear [--name NAME] [--rounds N] [--seconds S] [--threads N]

Measures operations and limits in turn, writes benchmarks/results/NAME.json, and prints the table. All calls go through
`bittensor.linear`, 4 bits, symmetric, float16 scales. The claims:

a) int8 activations at N = K = 4096: operations per second against the peak of the byte products of vectors, and where
   there is AMX of its tiles; with one row, bytes of weights and scales per second against reading memory;
b) float activations at the same sizes, against the peak of the float32 multiply-adds and reading memory;
c) instruction sets by name against the peak of their own instructions;
d) two threads against one, also at N = 1536, K = 384;
e) the gradient with respect to x (`linear_input_grad`), against the peak of the float32 multiply-adds.
"""

from __future__ import annotations

import itertools
from functools import partial

import torch
from bittensor_cpp import _native

import bittensor
from benchmarks.asv.weights import random_weight

from . import machine, program
from .measure import Rounds, Sample, interleaved, rate, with_threads
from .record import Row, Target

FEATURES = 4096  # N and K
SCALING_SHAPES = ((FEATURES, FEATURES), (1536, 384))  # for two threads
SCALING_ROWS = (8, 32, 128)
LEAST_ROTATED = 16  # weights, more than 128 MiB

INT8_TARGETS = {(128, 8): 0.70, (128, 128): 0.80, (128, 512): 0.80, (32, 8): None, (32, 128): 0.66}
FLOAT_TARGETS = {(128, 8): None, (128, 128): 0.70}
ISA_TARGETS = {"avx2": 0.70, "avxvnni": 0.75, "avx512": None, "avx512vnni": None}
GRADIENT_TARGETS = {8: None, 128: 0.60}
MEMORY_TARGET = 0.90
SCALING_TARGET = 1.8


def at_least(ratio: float | None) -> Target | None:
    return None if ratio is None else Target("at least", ratio)


def new_weight(group_size: int, shape: tuple[int, int] = (FEATURES, FEATURES)) -> bittensor.QuantizedWeight:
    return random_weight(*shape, group_size)


def multiply(rows: int, weight: bittensor.QuantizedWeight, mode: str, threads: int, backend: str = "cpp") -> Sample:
    """Operations per second of `rows` rows, in units of 10^9."""
    outputs, columns = weight.shape
    x = torch.randn(rows, columns)

    def call() -> None:
        with bittensor.use_backend(backend):
            bittensor.linear(x, weight, activation_mode=mode)

    return with_threads(threads, rate(2 * rows * outputs * columns, call))


def many_rows(
    mode: str, targets: dict[tuple[int, int], float | None], threads: int, rounds: Rounds, isa: str
) -> list[Row]:
    limits = machine.int8_peaks(isa, threads) if mode == "int8" else machine.fma_peaks(isa, threads)
    samples = dict(limits)
    weights = {group_size: new_weight(group_size) for group_size in {size for size, _ in targets}}
    for group_size, rows in targets:
        samples[f"{mode} g{group_size} M={rows}"] = multiply(rows, weights[group_size], mode, threads)
    taken = interleaved(samples, rounds)
    claim = "a" if mode == "int8" else "b"
    return [
        Row.of(
            taken,
            f"{mode} g{group_size} M={rows}",
            limit,
            claim=claim,
            threads=threads,
            unit="GOP/s",
            target=at_least(target) if number == 0 else None,
        )
        for number, limit in enumerate(limits)
        for (group_size, rows), target in targets.items()
    ]


def one_row(mode: str, group_size: int, threads: int, rounds: Rounds) -> list[Row]:
    x = torch.randn(1, FEATURES)
    size = FEATURES * FEATURES // 2 + 2 * FEATURES * FEATURES // group_size
    count = max(LEAST_ROTATED, 2 * machine.last_level_cache() // size)  # twice what the caches hold
    weights = [new_weight(group_size) for _ in range(count)]
    for weight in weights:
        bittensor.linear(x, weight)  # brings it into the layout of the backend
    copies = itertools.cycle(weights)
    figure, limit = f"{mode} g{group_size} M=1, weights from memory", f"read {count * size >> 20} MiB"
    taken = interleaved(
        {
            figure: with_threads(threads, rate(size, lambda: bittensor.linear(x, next(copies), activation_mode=mode))),
            limit: lambda: _native.read_bandwidth(count * size, threads, 0.02, 2) / 1e9,
        },
        rounds,
    )
    claim = "a" if mode == "int8" else "b"
    return [Row.of(taken, figure, limit, claim=claim, threads=threads, unit="GB/s", target=at_least(MEMORY_TARGET))]


def instruction_sets(threads: int, rounds: Rounds, best: str) -> list[Row]:
    """Those below the best, which the other claims are about."""
    weight = new_weight(128)
    rows = []
    for isa, target in ISA_TARGETS.items():
        if isa not in _native.supported_isas() or isa == best:
            continue
        figure = f"int8 g128 M=128, {isa}"
        limits = machine.int8_peaks(isa, threads)
        samples = {figure: multiply(128, weight, "int8", threads, f"cpp:{isa}"), **limits}
        taken = interleaved(samples, rounds.times(0.5))
        (limit,) = limits
        rows.append(Row.of(taken, figure, limit, claim="c", threads=threads, unit="GOP/s", target=at_least(target)))
    return rows


def two_threads(rounds: Rounds) -> list[Row]:
    rows = []
    for shape in SCALING_SHAPES:
        weight = new_weight(128, shape)
        size = "" if shape == (FEATURES, FEATURES) else f"{shape[0]}x{shape[1]} "
        for count in SCALING_ROWS:
            names = [f"int8 {size}g128 M={count}, {threads} threads" for threads in (1, 2)]
            taken = interleaved(
                {name: multiply(count, weight, "int8", threads) for threads, name in enumerate(names, start=1)}, rounds
            )
            rows.append(
                Row.of(taken, names[1], names[0], claim="d", threads=2, unit="GOP/s", target=at_least(SCALING_TARGET))
            )
    return rows


def gradients(threads: int, rounds: Rounds, isa: str) -> list[Row]:
    backend = bittensor.get_backend("cpp")
    prepared = backend.prepare(new_weight(128))
    samples = machine.fma_peaks(isa, threads)
    (limit,) = samples
    for count in GRADIENT_TARGETS:
        dy = torch.randn(count, FEATURES)
        call = partial(backend.linear_input_grad, dy, prepared)
        samples[f"dx g128 M={count}"] = with_threads(threads, rate(2 * count * FEATURES * FEATURES, call))
    taken = interleaved(samples, rounds)
    return [
        Row.of(taken, f"dx g128 M={count}", limit, claim="e", threads=threads, unit="GOP/s", target=at_least(target))
        for count, target in GRADIENT_TARGETS.items()
    ]


def measure(threads: int, rounds: Rounds, isa: str) -> list[Row]:
    return [
        *many_rows("int8", INT8_TARGETS, threads, rounds, isa),
        *one_row("int8", 128, threads, rounds),
        *one_row("int8", 32, threads, rounds),
        *many_rows("float", FLOAT_TARGETS, threads, rounds, isa),
        *one_row("float", 128, threads, rounds),
        *instruction_sets(threads, rounds, isa),
        *two_threads(rounds),
        *gradients(threads, rounds, isa),
    ]


if __name__ == "__main__":
    program.run("The group-quantized linear against the machine's limits.", measure, name="linear", rounds=12)
