"""Ratios of times of two builds, for the instruction sets whose instructions cannot be counted.

Both are loaded into one process and run in turn, in samples of 50 microseconds. A sample that another process
interrupts is longer, never shorter; the ratio is therefore that of the first deciles of the samples. What remains are
effects of addresses, of a fifth at most: operands are made anew several times, with the places of both swapped, and
processes are started anew, with the order of loading swapped. The ratio of a case is the mean of the middle half. One
that deviates is measured again, by more and more processes, before it is believed.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from .builds import Build, output

ROUNDS = 8
"""Rounds of four samples for each placement of the operands."""
PROCESSES = (2, 4, 8)
"""Processes of the first measurement, and of each that repeats what deviates."""
SUSPICIOUS = 0.025
"""A deviation from 1 that is measured again."""

Ratios = dict[str, list[float]]
"""Ratios of head to base for each case; one for each pair of swapped placements."""


def compare(base: Build, head: Build, names: Collection[str], *, planted: int = 0) -> dict[str, float]:
    """Ratio of head to base for each case.

    `planted` is a slowdown of head in percent, to see that it is found; only where it is not yet, is it measured again.
    """
    ratios: Ratios = defaultdict(list)
    waiting = list(names)
    number = 0
    for processes in PROCESSES:
        for _ in range(processes):
            if waiting:
                for name, found in one_process(base, head, waiting, planted, swapped=number % 2 == 1).items():
                    ratios[name] += found
            number += 1
        waiting = [
            name
            for name, ratio in ((name, middle(ratios[name])) for name in waiting)
            if abs(ratio - 1) > SUSPICIOUS and not (planted and ratio > 1 + planted / 200)
        ]
    return {name: middle(found) for name, found in ratios.items()}


def middle(ratios: Sequence[float]) -> float:
    """The geometric mean of the middle half: what was disturbed is outside of it.

    Not the median: where addresses decide between two speeds, half of the ratios are high and half are low, and the
    median is one of the two.
    """
    ordered = sorted(ratios)
    outside = len(ordered) // 4
    return statistics.geometric_mean(ordered[outside : len(ordered) - outside])


def one_process(base: Build, head: Build, names: Sequence[str], planted: int, *, swapped: bool) -> Ratios:
    """Ratios of head to base. Swapped, head is loaded first and stands where the driver expects the base."""
    first, second = (head, base) if swapped else (base, head)
    percent = -planted if swapped else planted
    command = [str(head.driver), "compare", str(first.module), str(second.module), str(ROUNDS), str(percent), *names]
    ratios = read_samples(output(command).splitlines())
    return {name: [1 / ratio for ratio in found] for name, found in ratios.items()} if swapped else ratios


def read_samples(lines: Iterable[str]) -> Ratios:
    """Ratios of second to first: the geometric mean over each two placements that follow each other."""
    deciles: dict[tuple[str, str], list[float]] = defaultdict(list)
    for line in lines:
        name, which, *samples = line.split("\t")
        deciles[name, which].append(first_decile([float(sample) for sample in samples]))
    ratios: Ratios = {}
    for name in dict.fromkeys(name for name, _ in deciles):
        each = [b / a for a, b in zip(deciles[name, "first"], deciles[name, "second"], strict=True)]
        ratios[name] = [statistics.geometric_mean(pair) for pair in zip(each[::2], each[1::2], strict=True)]
    return ratios


def first_decile(samples: Sequence[float]) -> float:
    return statistics.quantiles(samples, n=10, method="inclusive")[0]
