"""Packing and the integer product against the limits of the machine and against torch, in one run.

    python -m benchmarks.report.integer_matmul [--name NAME] [--rounds N] [--seconds S] [--threads N]

Measures operations and limits in turn, writes benchmarks/results/NAME.json, and prints the table. The claims:

a) packing and unpacking 64 MiB of codes, bytes of codes per second, against a copy of the same bytes;
b) the product at N = K = 4096: with one row, bytes of weights per second against reading memory; with more rows,
   operations per second against the peak of the byte products of vectors, and where there is AMX of its tiles;
c) one row at N = 8, K = 16, time against torch's float32 linear layer of that size.

All calls go through the public functions, except "kernel" rows, which call the row kernel on memory that is in use.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from bittensor_cpp import _native
from torch.nn.functional import linear

import bittensor

from . import machine, program
from .measure import Rounds, Sample, interleaved, rate, seconds_per_call, with_threads
from .record import Row, Target

BITS = 4
FEATURES = 4096  # N and K
CODE_BYTES = 64 * 2**20
WEIGHT_BYTES = FEATURES * FEATURES * BITS // 8
LEAST_ROTATED = 16  # weights, 128 MiB

COPY = Target("at least", 0.5)
MEMORY = Target("at least", 0.8)
PEAK = Target("at least", 0.6)
SMALL = Target("at most", 1.5)


def packing(threads: int, rounds: Rounds, isa: str) -> list[Row]:
    codes = torch.randint(0, 2**BITS, (CODE_BYTES // FEATURES, FEATURES), dtype=torch.uint8)
    words = bittensor.pack_weights(codes, BITS)
    codes_again = torch.zeros_like(codes)
    words_again = torch.zeros_like(words)
    columns = codes.numel()  # rows are whole words, so that all of them make one long row

    new_copy, used_copy = "copy to new memory", "copy to memory in use"
    functions: dict[str, Callable[[], object]] = {
        "pack_weights": lambda: bittensor.pack_weights(codes, BITS),
        "unpack_weights": lambda: bittensor.unpack_weights(words, FEATURES, BITS),
        new_copy: lambda: torch.empty_like(codes).copy_(codes),
        used_copy: lambda: codes_again.copy_(codes),
    }
    samples = {name: with_threads(threads, rate(CODE_BYTES, function)) for name, function in functions.items()}
    memcpy = "memcpy to memory in use"
    samples[memcpy] = lambda: _native.copy_bandwidth(CODE_BYTES, threads, 0.02, 2) / 1e9
    pack_kernel, unpack_kernel, one_copy = "pack kernel", "unpack kernel", "copy to memory in use, 1 thread"
    code_buffer, word_buffer = codes.numpy(), words.numpy()
    code_output, word_output = codes_again.numpy(), words_again.numpy()
    kernels: dict[str, Callable[[], object]] = {
        pack_kernel: lambda: _native.pack_row(f"pack_row_b{BITS}_{isa}", code_buffer, columns, word_output),
        unpack_kernel: lambda: _native.unpack_row(f"unpack_row_b{BITS}_{isa}", word_buffer, columns, code_output),
        one_copy: functions[used_copy],
    }
    samples |= {name: with_threads(1, rate(CODE_BYTES, function)) for name, function in kernels.items()}

    taken = interleaved(samples, rounds)

    def row(figure: str, limit: str, count: int = threads, target: Target | None = None) -> Row:
        return Row.of(taken, figure, limit, claim="a", threads=count, unit="GB/s", target=target)

    public = [row(name, new_copy, target=COPY) for name in ("pack_weights", "unpack_weights")]
    against_used = [row(name, used_copy) for name in ("pack_weights", "unpack_weights")]
    in_use = [row(name, one_copy, 1) for name in (pack_kernel, unpack_kernel)]
    return [*public, *against_used, *in_use, row(used_copy, memcpy)]


def one_row(threads: int, rounds: Rounds) -> list[Row]:
    x = torch.randint(0, 2**BITS, (1, FEATURES), dtype=torch.uint8)
    count = max(LEAST_ROTATED, 2 * machine.last_level_cache() // WEIGHT_BYTES)  # twice what the caches hold
    copies = itertools.cycle([new_weight() for _ in range(count)])
    total = count * WEIGHT_BYTES
    figure, limit = "packed_matmul M=1, weights from memory", f"read {total >> 20} MiB"
    taken = interleaved(
        {
            figure: with_threads(
                threads, rate(WEIGHT_BYTES, lambda: bittensor.packed_matmul(x, next(copies), bits=BITS))
            ),
            limit: lambda: _native.read_bandwidth(total, threads, 0.02, 2) / 1e9,
        },
        rounds,
    )
    return [Row.of(taken, figure, limit, claim="b", threads=threads, unit="GB/s", target=MEMORY)]


def more_rows(threads: int, rounds: Rounds, isa: str) -> list[Row]:
    weight = new_weight()
    limits = machine.int8_peaks(isa, threads)
    samples = dict(limits)
    targets = {8: PEAK, 32: None, 128: PEAK, 512: None}
    for m in targets:
        x = torch.randint(0, 2**BITS, (m, FEATURES), dtype=torch.uint8)

        def multiply(x: torch.Tensor = x) -> torch.Tensor:
            return bittensor.packed_matmul(x, weight, bits=BITS)

        samples[f"packed_matmul M={m}"] = with_threads(threads, rate(2 * m * FEATURES * FEATURES, multiply))
    taken = interleaved(samples, rounds)
    return [
        Row.of(
            taken,
            f"packed_matmul M={m}",
            limit,
            claim="b",
            threads=threads,
            unit="GOP/s",
            target=target if number == 0 else None,
        )
        for number, limit in enumerate(limits)
        for m, target in targets.items()
    ]


def smallest(threads: int, rounds: Rounds) -> list[Row]:
    x = torch.randint(0, 2**BITS, (1, 16), dtype=torch.uint8)
    codes = torch.randint(0, 2**BITS, (8, 16), dtype=torch.uint8)
    bias = torch.randint(0, 2**BITS, (8,), dtype=torch.uint8)
    weight = bittensor.pack_weights(codes, BITS)
    float_x, float_weight, float_bias = x.float(), codes.float(), bias.float()

    def microseconds(function: Callable[[], object]) -> Sample:
        seconds = seconds_per_call(function, at_least=0.005)
        return with_threads(threads, lambda: seconds() * 1e6)

    figure, limit = "packed_matmul M=1 N=8 K=16", "torch linear, float32"
    taken = interleaved(
        {
            figure: microseconds(lambda: bittensor.packed_matmul(x, weight, bias, bits=BITS)),
            limit: microseconds(lambda: linear(float_x, float_weight, float_bias)),
        },
        rounds,
    )
    return [Row.of(taken, figure, limit, claim="c", threads=threads, unit="us", target=SMALL)]


def new_weight() -> torch.Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (FEATURES, FEATURES * BITS // 64))  # codes, 64 bits at a time


def measure(threads: int, rounds: Rounds, isa: str) -> list[Row]:
    return [
        *packing(threads, rounds, isa),
        *one_row(threads, rounds),
        *more_rows(threads, rounds, isa),
        *smallest(threads, rounds.times(5)),
    ]


if __name__ == "__main__":
    program.run(
        "Packing and the integer product against the machine's limits; claim c takes five times the rounds.",
        measure,
        name="integer_matmul",
        rounds=20,
    )
