"""Timing of the linear on this machine, beside torch's in float32."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.benchmark import Timer

from .ops import linear
from .quantize_config import QuantizeConfig
from .quantized_weight import QuantizedWeight
from .registry import use_backend

_ROUNDS = 5


@dataclass(frozen=True)
class LinearTiming:
    """How long a backend takes for a linear layer.

    Attributes:
        backend: its name, with the variant.
        out_features, in_features, rows: N, K and M.
        microseconds: of a call, the median.
        float32_microseconds: the same for ``torch.nn.functional.linear`` in float32, timed in turn.
        gops: 10^9 operations per second, two for each weight and row.
        gigabytes_per_second: bytes of the weight, scales included, over the time.
    """

    backend: str
    out_features: int
    in_features: int
    rows: int
    microseconds: float
    float32_microseconds: float
    gops: float
    gigabytes_per_second: float

    @property
    def times_float32(self) -> float:
        """How many times as fast as torch in float32."""
        return self.float32_microseconds / self.microseconds


def time_linear(
    shapes: Sequence[tuple[int, int]],
    rows: Sequence[int],
    backends: Sequence[str],
    config: QuantizeConfig,
    *,
    threads: int,
    seconds: float,
) -> Iterator[LinearTiming]:
    """Time `bittensor.linear` for each shape, each number of rows and each backend.

    The backends and torch take turns, five times; the weight is the same in every call, so that a small one stays in
    the caches.

    Args:
        shapes: (N, K) of the weights.
        rows: of the input, float32.
        backends: names, as for `bittensor.use_backend`.
        config: of the weights; random values, rounded to nearest.
        threads: of torch.
        seconds: for each figure.

    Raises:
        BackendError: a backend that is unknown, cannot run here, or does not declare what `config` asks for.
        TypeError, ValueError: a shape that `config` does not fit.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    for shape in shapes:
        weight = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        packed = {name: config.quantize(weight) for name in backends}
        for count in rows:
            x = torch.randn(count, shape[1], generator=generator, dtype=torch.float32, device="cpu")
            timers = {name: _timer(_call(x, each, config, name), threads) for name, each in packed.items()}
            plain = _timer(lambda x=x, weight=weight: torch.nn.functional.linear(x, weight), threads)  # type: ignore[misc]
            times: dict[str, list[float]] = {name: [] for name in timers}
            float_times = []
            with torch.inference_mode():
                for _ in range(_ROUNDS):
                    float_times.append(plain.blocked_autorange(min_run_time=seconds / _ROUNDS).median)
                    for name, timer in timers.items():
                        times[name].append(timer.blocked_autorange(min_run_time=seconds / _ROUNDS).median)
            for name in backends:
                taken = statistics.median(times[name])
                yield LinearTiming(
                    name,
                    *shape,
                    count,
                    microseconds=taken * 1e6,
                    float32_microseconds=statistics.median(float_times) * 1e6,
                    gops=2 * count * weight.numel() / taken / 1e9,
                    gigabytes_per_second=packed[name].nbytes / taken / 1e9,
                )


def _call(x: torch.Tensor, weight: QuantizedWeight, config: QuantizeConfig, backend: str) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        with use_backend(backend):
            return linear(x, weight, None, config.activation_mode)

    call()  # into the layout of the backend, and refused here if it cannot be computed
    return call


def _timer(function: Callable[[], torch.Tensor], threads: int) -> Timer:
    return Timer("function()", globals={"function": function}, num_threads=threads)
