"""Every kernel on its own, on one thread, with what it computes and moves: the points of the roofline.

    python -m benchmarks.report.kernels [--name NAME] [--rounds N]

Builds and runs the cases of the gate (backends/cpp/gate) on every instruction set of this machine, and writes
benchmarks/results/NAME.json. Operands fit the second-level cache. Figures are the first decile over the rounds.
"""

from __future__ import annotations

from bittensor_cpp import _native

from benchmarks.gate import builds

from . import machine, program, record

BANDWIDTHS = {"L2": 2**19, "L3": 2**24, "memory": 2**29}
"""Bytes of a buffer that one thread reads from a cache, or from memory."""


def roofs() -> dict[str, float]:
    """Peaks of each instruction set and bandwidths of one thread, in units of 10^9 per second."""
    peaks = {
        name: rate
        for isa in _native.supported_isas()
        for name, rate in (
            (f"int8 {isa} GOP/s", _native.int8_peak(isa)),
            (f"float32 fma {isa} GFLOP/s", _native.fma_peak(isa)),
        )
    }
    bandwidths = {f"read {name} GB/s": _native.read_bandwidth(size) for name, size in BANDWIDTHS.items()}
    return {name: round(rate / 1e9, 1) for name, rate in (peaks | bandwidths).items()}


def measure(rounds: int) -> list[dict[str, object]]:
    """A row for each case."""
    build = builds.build(machine.ROOT, machine.ROOT / builds.CASES, machine.ROOT / builds.FOLDER)
    cases = {case.name: case for case in build.listing()[1]}
    isas = _native.supported_isas()
    lines = builds.output([str(build.driver), "time", str(build.module), str(rounds), *isas]).splitlines()
    rows = []
    for name, seconds in (line.split("\t") for line in lines):
        case = cases[name]
        rows.append(
            {
                "case": name,
                "kernel": case.kernel or name.partition("/")[0],
                "isa": case.isa,
                "operations": case.operations,
                "bytes": case.bytes,
                "microseconds": round(float(seconds) * 1e6, 4),
                "figure": round(case.operations / float(seconds) / 1e9, 3),
            }
        )
    return rows


def main() -> None:
    given = program.arguments("Every kernel on one thread.", name="kernels", rounds=50).parse_args()
    with program.set_up(1, given.rounds) as about:
        path = record.write(given.name, about, roofs(), measure(given.rounds))
    print(path.relative_to(machine.ROOT))


if __name__ == "__main__":
    main()
