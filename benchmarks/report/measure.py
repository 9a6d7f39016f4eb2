"""Measuring on a machine that others use too: short samples taken in turn, medians, and ratios within a round."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Sample = Callable[[], float]
"""Takes one measurement and returns its figure."""


@dataclass(frozen=True)
class Samples:
    """Figures by name, one for each round; the same index is the same round."""

    figures: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.figures[name])

    def range(self, name: str) -> tuple[float, float]:
        """First and third quartile."""
        return quartiles(self.figures[name])

    def ratio(self, name: str, other: str) -> float:
        """Median over the rounds of `name` / `other`: what disturbed a whole round cancels out."""
        return statistics.median(self._ratios(name, other))

    def ratio_range(self, name: str, other: str) -> tuple[float, float]:
        """First and third quartile of the ratios within rounds."""
        return quartiles(self._ratios(name, other))

    def _ratios(self, name: str, other: str) -> list[float]:
        return [a / b for a, b in zip(self.figures[name], self.figures[other], strict=True)]


def quartiles(figures: Sequence[float]) -> tuple[float, float]:
    """First and third quartile."""
    first, _, third = statistics.quantiles(figures, n=4, method="inclusive")
    return first, third


@dataclass(frozen=True)
class Rounds:
    """How often is sampled: `most` times, and less often where that would take more than `seconds`."""

    most: int
    seconds: float = math.inf
    least = 3  # fewer have no quartiles

    def times(self, factor: float) -> Rounds:
        """So many times as many rounds, within the same time."""
        return Rounds(max(round(self.most * factor), 1), self.seconds)


def interleaved(functions: Mapping[str, Sample], rounds: Rounds) -> Samples:
    """Calls all functions once a round, in an order that turns round every time, so that noise hits all alike."""
    figures: dict[str, list[float]] = {name: [] for name in functions}
    order = list(functions)
    end = time.perf_counter() + rounds.seconds
    for number in range(rounds.most):
        if number >= rounds.least and time.perf_counter() > end:
            break
        for name in order:
            figures[name].append(functions[name]())
        order.reverse()
    return Samples(figures)


def seconds_per_call(function: Callable[[], object], *, at_least: float = 0.02) -> Sample:
    """A sample of the median time of a call, over as many calls as fill `at_least` seconds.

    The calls before the clock starts wake up threads and caches. Calls that take less than 100 us are timed in
    batches, because reading the clock takes part of a microsecond.
    """

    def sample() -> float:
        function()
        batch = 1
        while (taken := timed(function, batch)) < 1e-4:
            batch *= 2
        times = [taken / batch]
        passed = taken
        while passed < at_least or len(times) < 3:
            taken = timed(function, batch)
            times.append(taken / batch)
            passed += taken
        return statistics.median(times)

    return sample


def timed(function: Callable[[], object], calls: int) -> float:
    """Seconds that `calls` calls take."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return time.perf_counter() - start


def with_threads(threads: int, sample: Sample) -> Sample:
    """The sample taken with `threads` of torch's threads."""

    def taken() -> float:
        torch.set_num_threads(threads)
        return sample()

    return taken


def when_idle(sample: Sample, *, pause: float = 0.003, give_up: float = 2.0) -> Sample:
    """The sample taken when no thread of this process runs any more.

    Pools of threads spin for a while after a call, up to tens of milliseconds, and would take the processor from the
    next sample, which may be of a library with a pool of its own. A pause in which the process uses less than a tenth
    of one processor shows that they sleep. RuntimeError if that takes more than `give_up` seconds.
    """

    def taken() -> float:
        end = time.perf_counter() + give_up
        while True:
            start, used = time.perf_counter(), time.process_time()
            time.sleep(pause)
            if time.process_time() - used < 0.1 * (time.perf_counter() - start):
                return sample()
            if time.perf_counter() > end:
                raise RuntimeError(f"threads of this process still run {give_up} s after the last call")

    return taken


def rate(amount: float, function: Callable[[], object]) -> Sample:
    """A sample of `amount` per call as a rate, in units of 10^9 per second."""
    seconds = seconds_per_call(function)
    return lambda: amount / seconds() / 1e9
