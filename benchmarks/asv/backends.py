"""The backends that every benchmark has as a parameter, and how they are taken into use."""

from __future__ import annotations

from asv_runner.benchmarks.mark import SkipNotImplemented

import bittensor

BACKENDS = ["cpp", "cpp:scalar", "cpp:avx2", "cpp:avxvnni", "cpp:avx512", "cpp:avx512vnni", "cpp:amx", "reference"]
"""Fixed, so that results of different machines and commits stand side by side; what is absent is skipped."""

FAST_BACKENDS = ["cpp", "cpp:avx2"]
"""For benchmarks with many other parameters: what the machine does best, and what most machines can do."""


class Timing:
    """Base of timing benchmarks: enough processes and repeats for asv's test to tell a change from noise."""

    rounds = 4
    repeat = (3, 10, 0.4)
    warmup_time = 0.05
    sample_time = 0.01
    timeout = 60


def use(name: str, operation: str, bits: int, *, steps: int = 0) -> None:
    """Makes a backend the current one, or skips the benchmark where it is absent, incapable, or far too slow.

    A commit that does not know the operation skips it too.
    """
    try:
        backend = bittensor.get_backend(name)
    except bittensor.UnknownBackendError as error:
        raise SkipNotImplemented(str(error)) from None
    capabilities = backend.capabilities
    widths = capabilities.bits if operation in {"pack", "unpack", "packed_matmul"} else capabilities.linear_bits
    if operation not in capabilities.operations or bits not in widths:
        raise SkipNotImplemented(f"{name} does not declare {operation} at {bits} bits")
    if steps > {"reference": 2**22, "cpp:scalar": 2**26}.get(name, steps):
        raise SkipNotImplemented(f"{steps} steps take too long on {name}")
    bittensor.set_backend(name)
