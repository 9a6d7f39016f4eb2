"""`bittensor.linear` beside what users would pick instead, one after the other in one process.

    python -m benchmarks.report.peers [--shapes NxK ...] [--rows M ...] [--group-sizes G ...] [--name NAME] [--fresh]
                                      [--rounds N] [--seconds S] [--threads N] [--peers NAME ...]

Measures the peers of benchmarks/peers in every cell, prints a table, and writes benchmarks/results/NAME.json. A run
over some of the cells replaces these cells in the file and keeps the others, so that a long run can be made in pieces,
as long as machine, versions and settings are the same; ``--fresh`` starts a new file. docs/benchmarks.md describes how
the comparison is made.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version

import torch
from bittensor_cpp import _native

from benchmarks.peers import installed
from benchmarks.peers.peer import Cell, Peer, Weight

from . import machine, peers_table, program, record
from .measure import Rounds, Sample, Samples, interleaved, rate, when_idle, with_threads

SHAPES = [(384, 384), (1536, 384), (4096, 4096), (11008, 4096)]
ROWS = [1, 4, 8, 16, 32, 128, 512]
GROUP_SIZES = [32, 128]
OURS = ("bittensor int8", "bittensor float")
LIMIT = "limit"

ROTATED_FROM = 2**20
"""Bytes of 4-bit codes from which a layer is one of a model beyond the caches: at M = 1 its weights are rotated."""
BEYOND_CACHE = 2
"""Rotated weights take this many times the largest cache."""
LARGEST_ERROR = 8
"""An error of one output may be this many times the tolerance, which bounds the root mean square."""

SAME_IN_ONE_RECORD = ("cpu", "cpus", "isa", "threads", "rounds", "commit", "versions", "absent")


@dataclass(frozen=True)
class Timing:
    """What one peer did in one cell; the limit of the machine in this cell has a row too, named "limit".

    `figure` is 10^9 operations per second, the median over rounds. `ratios` says for each of ours how many times as
    fast it was within the same rounds: first quartile, median, third quartile.
    """

    n: int
    k: int
    group_size: int
    rows: int
    peer: str
    weight_bits: int | None = None
    activations: str | None = None
    status: str = "timed"  # or "wrong", "failed", "unsupported"
    reason: str | None = None
    copies: int = 1
    error: float | None = None
    figure: float | None = None
    quartiles: tuple[float, float] | None = None
    ratios: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)


def copies(cell: Cell, weight_bits: int) -> int:
    """Weights to take in turn so that each comes from memory: more than one for large layers with one row."""
    if cell.rows > 1 or cell.n * cell.k // 2 < ROTATED_FROM:
        return 1
    return -(-BEYOND_CACHE * machine.last_level_cache() // (cell.n * cell.k * weight_bits // 8))


def relative_error(result: object, reference: torch.Tensor) -> tuple[float, float]:
    """Root mean square and largest error over all outputs, relative to the root mean square of the reference."""
    values = torch.as_tensor(result)
    if values.shape != reference.shape:
        raise ValueError(f"expected outputs {list(reference.shape)}, got {list(values.shape)}")
    size = reference.square().mean().sqrt()
    error = (values.double() - reference) / size
    return error.square().mean().sqrt().item(), error.abs().max().item()


def judge(peer: Peer, calls: Sequence[Callable[[], object]], references: Sequence[torch.Tensor]) -> dict[str, object]:
    """Error over all weights, and a status other than "timed" with its reason if a result is not what was asked."""
    errors = [relative_error(call(), reference) for call, reference in zip(calls, references, strict=False)]
    mean, largest = (max(values) for values in zip(*errors, strict=True))
    if mean <= peer.tolerance and largest <= LARGEST_ERROR * peer.tolerance:
        return {"error": mean}
    reason = f"relative error {mean:.2g}, at most {largest:.2g}; tolerance {peer.tolerance:g}"
    return {"error": mean if mean == mean else None, "status": "wrong", "reason": reason}


def limit_of(cell: Cell, threads: int, isa: str) -> Sample:
    """Operations per second, in units of 10^9, that the machine allows: byte products, or reading rotated weights."""
    count = copies(cell, weight_bits=4)
    if count == 1:
        return lambda: _native.int8_peak(isa, threads, 0.02, 3) / 1e9
    size = cell.n * cell.k // 2 + 2 * cell.n * (cell.k // cell.group_size)
    return lambda: cell.operations / size * _native.read_bandwidth(count * size, threads, 0.02, 2) / 1e9


def measure(cell: Cell, peers: Iterable[Peer], threads: int, rounds: Rounds, isa: str) -> list[Timing]:
    """Builds, checks and times all peers in one cell."""
    torch.set_num_threads(threads)
    x = torch.randn(cell.rows, cell.k, generator=torch.Generator().manual_seed(0))
    weights = [Weight.random(cell, seed) for seed in range(copies(cell, weight_bits=4))]
    references = [x.double() @ weight.dequantized().double().T for weight in weights]
    samples: dict[str, Sample] = {}
    facts: dict[str, dict[str, object]] = {}
    for peer in peers:
        own = weights[: copies(cell, peer.weight_bits)]
        fact: dict[str, object] = {
            "weight_bits": peer.weight_bits,
            "activations": peer.activations,
            "copies": len(own),
        }
        facts[peer.name] = fact
        if reason := peer.unsupported(cell):
            fact |= {"status": "unsupported", "reason": reason}
            continue
        try:
            calls = [peer.build(weight, x, threads) for weight in own]
            fact |= judge(peer, calls, references)
        except Exception as error:  # of a stranger's library: reported in its row, while the others go on
            fact |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        if "status" not in fact:
            samples[peer.name] = when_idle(with_threads(threads, rate(cell.operations, in_turn(calls))))
    samples[LIMIT] = when_idle(limit_of(cell, threads, isa))
    facts[LIMIT] = {"copies": len(weights)}
    taken = interleaved(samples, rounds)
    place = asdict(cell)
    return [
        Timing(**place, peer=name, **fact, **(figures(taken, name) if name in samples else {}))
        for name, fact in facts.items()
    ]


def in_turn(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """One call after the other, over and over."""
    if len(calls) == 1:
        return calls[0]
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def figures(taken: Samples, name: str) -> dict[str, object]:
    """Median, quartiles, and how many times as fast ours are."""
    ratios = {}
    for ours in OURS:
        if ours in taken.figures and ours != name:
            low, high = taken.ratio_range(ours, name)
            ratios[ours] = (round(low, 3), round(taken.ratio(ours, name), 3), round(high, 3))
    low, high = taken.range(name)
    return {
        "figure": round(taken.median(name), 3),
        "quartiles": (round(low, 3), round(high, 3)),
        "ratios": ratios,
    }


def cell_of(row: Mapping[str, int]) -> Cell:
    return Cell(row["n"], row["k"], row["group_size"], row["rows"])


def kept_from(
    old: Mapping[str, object] | None, about: dict[str, object], measured: Sequence[Cell]
) -> list[Mapping[str, object]]:
    """Rows of a record that the measured cells leave as they are; ValueError if they were measured otherwise."""
    if old is None:
        return []
    kept = [row for row in old["rows"] if cell_of(row) not in measured]
    before = old["machine"]
    different = [name for name in SAME_IN_ONE_RECORD if before.get(name) != about.get(name)]
    if kept and different:
        changes = "; ".join(f"{name} was {before.get(name)}, is {about.get(name)}" for name in different)
        raise ValueError(f"the record holds other cells that were measured otherwise: {changes}. Use --fresh or --name")
    return kept


def chosen(peers: Sequence[Peer], names: Sequence[str] | None) -> list[Peer]:
    known = {peer.name: peer for peer in peers}
    if unknown := set(names or ()) - set(known):
        raise ValueError(f"--peers: unknown or not installed: {sorted(unknown)}; there are {sorted(known)}")
    return [known[name] for name in names or known]


def shape(text: str) -> tuple[int, int]:
    n, k = map(int, text.split("x"))
    return n, k


def main() -> None:
    parser = program.sampling_arguments("The linear beside its peers.", name="peers", rounds=9)
    parser.add_argument("--shapes", nargs="+", type=shape, default=SHAPES, metavar="NxK")
    parser.add_argument("--rows", nargs="+", type=program.at_least(1), default=ROWS, metavar="M")
    parser.add_argument("--group-sizes", nargs="+", type=program.at_least(8), default=GROUP_SIZES, metavar="G")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="only these; nothing is written then")
    parser.add_argument("--fresh", action="store_true", help="start a new result file")
    run(parser.parse_args())


def run(given: argparse.Namespace) -> None:
    peers, absent = installed()
    cells = [
        Cell(n, k, size, rows) for (n, k), rows, size in itertools.product(given.shapes, given.rows, given.group_sizes)
    ]
    peers = chosen(peers, given.peers)
    with program.set_up(given.threads, given.rounds) as about, torch.inference_mode():
        packages = sorted({package for peer in peers for package in peer.packages})
        about["versions"] = {**about["versions"], **{package: version(package) for package in packages}}
        about["absent"] = absent
        path = record.path_of(given.name)
        old = None if given.fresh or given.peers else record.read(given.name)
        kept = kept_from(old, about, cells)
        isa = str(about["isa"])
        limits = machine.limits(given.threads, isa)
        rows: list[dict[str, object]] = []
        for cell in cells:
            rows += map(asdict, measure(cell, peers, given.threads, Rounds(given.rounds, given.seconds), isa))
            print(f"{cell}: {sum(row['status'] == 'timed' for row in rows[-len(peers) - 1 :]) - 1} peers", flush=True)
    if kept:
        limits = {name: max(figure, old["limits"][name]) for name, figure in limits.items()}
        about["command"] = f"{old['machine']['command']}; {about['command']}"
    rows = sorted([*kept, *rows], key=cell_of)
    if not given.peers:
        record.write(given.name, about, limits, rows)
    peers_table.show(f"{about['cpu']}, {isa}, {given.threads} threads, {about['date']}", rows)
    for name, reason in absent.items():
        print(f"{name}: {reason}")
    if not given.peers:
        print(path.relative_to(machine.ROOT))


if __name__ == "__main__":
    main()
