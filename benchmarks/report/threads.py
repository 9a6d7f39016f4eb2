"""The linear on more and more threads.

    python -m benchmarks.report.threads [--name NAME] [--rounds N] [--seconds S] [--counts 1 2 4 ...]

All counts in turn within each round; the ratio of a row is to one thread. Writes benchmarks/results/NAME.json.
"""

from __future__ import annotations

import os
from dataclasses import asdict

from . import machine, program, record
from .linear import multiply, new_weight
from .measure import Rounds, interleaved
from .record import Row

ROWS = (1, 8, 128, 512)


def default_counts() -> list[int]:
    """Powers of two up to the processors of this machine, and all of them."""
    most = os.cpu_count() or 1
    return sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})


def measure(counts: list[int], rounds: Rounds) -> list[Row]:
    weight = new_weight(128)
    rows = []
    for m in ROWS:
        names = {count: f"int8 g128 M={m}, {count} threads" for count in counts}
        taken = interleaved({names[count]: multiply(m, weight, "int8", count) for count in counts}, rounds)
        rows += [
            Row.of(taken, names[count], names[counts[0]], claim=f"M={m}", threads=count, unit="GOP/s")
            for count in counts
        ]
    return rows


def main() -> None:
    parser = program.sampling_arguments("The linear on more and more threads.", name="threads", rounds=12)
    parser.add_argument("--counts", nargs="+", type=program.at_least(1), default=default_counts(), metavar="N")
    given = parser.parse_args()
    counts = sorted(given.counts)
    with program.set_up(counts[-1], given.rounds) as about:
        limits = machine.limits(counts[-1], str(about["isa"]))
        rows = measure(counts, Rounds(given.rounds, given.seconds))
    path = record.write(given.name, about, limits, [asdict(row) for row in rows])
    record.show(f"{about['cpu']}, {about['isa']}, {about['date']}", limits, rows)
    print(path.relative_to(machine.ROOT))


if __name__ == "__main__":
    main()
