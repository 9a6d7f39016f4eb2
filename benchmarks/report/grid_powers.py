"""What a grid for each group can keep of an embedding model at best, by the power of the error that it minimizes.

    python -m benchmarks.report.grid_powers [--name NAME] [--threads N]

For each power p the linear layers of all-MiniLM-L6-v2 get, in groups of 32, the 4-bit grid with the least sum of
``abs(error) ** p`` among nearly 200 grids, which is too slow for a method: how well "mse" (p = 2) and "hqq" (p = 1.5)
could do if they found the minimum. The rounded weights are floats, and so are activations. Writes
benchmarks/results/NAME.json, and the table of docs/embedding_model.md from that file.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from bittensor.grids import FloatBlock, Grid, GroupBlock
from bittensor.quantization import Choice, Loss

from . import generated, program, record
from .embedding_model import PAGE, SENTENCES, chosen_sentences
from .sentence_model import Agreement, Embedder, load_float

BITS, GROUP_SIZE = 4, 32
POWERS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
PLACES = torch.linspace(0.5, 1.1, 12).tolist()
"""Fractions of a group's range, below and above its mean, that both ends take."""
REFINEMENTS = 2


def power_error(power: float) -> Loss:
    """The sum of ``abs(error) ** power`` of a group."""

    def loss(block: GroupBlock, grid: Grid) -> torch.Tensor:
        _, residual = block.residual(grid)
        return residual.abs_().pow_(power).sum(dim=1, keepdim=True) * grid.scale.abs() ** power

    return loss


def best_grid(block: GroupBlock, loss: Loss) -> Grid:
    """The best grid for each group among all pairs of places of its ends, and among those around the best pair."""
    choice = Choice(block, loss)
    low = high = torch.ones_like(choice.least)

    def offer(below: torch.Tensor, above: torch.Tensor) -> None:
        nonlocal low, high
        better = choice.offer(block.shrunk(below, above))
        low, high = torch.where(better, below, low), torch.where(better, above, high)

    for below, above in itertools.product(PLACES, PLACES):
        offer(torch.full_like(low, below), torch.full_like(high, above))
    step = PLACES[1] - PLACES[0]
    for _ in range(REFINEMENTS):
        step /= 3
        center = low, high
        for i, j in itertools.product((-2, -1, 0, 1, 2), repeat=2):
            offer(center[0] + i * step, center[1] + j * step)
    return choice.grid


@torch.no_grad()
def rounded(model: torch.nn.Module, loss: Loss) -> tuple[torch.nn.Module, float]:
    """A copy of the model whose linear layers lie on their best grids, and the squared error of all its weights."""
    model, squared = copy.deepcopy(model), 0.0
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            weight = layer.weight
            block = FloatBlock(weight.reshape(-1, GROUP_SIZE).clone(), BITS, torch.float16)
            grid = best_grid(block, loss)
            values = (block.codes(grid) * grid.scale + (0 if grid.offset is None else grid.offset)) * block.unit
            squared += float((values.view_as(weight) - weight).double().square().sum())
            weight.copy_(values.view_as(weight))
    return model, squared


def measure() -> Iterator[dict[str, Any]]:
    """A row for each power."""
    texts, float_model = chosen_sentences(SENTENCES, seed=0), load_float()
    reference = Embedder(float_model).embed(texts)
    for power in POWERS:
        model, squared = rounded(float_model, power_error(power))
        agreement = Agreement.of(Embedder(model).embed(texts), reference)
        yield {"power": power, "squared_error": squared, **asdict(agreement)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| power | squared error of the weights | cosine, mean | cosine, least | rank correlation |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        figures = [f"{row[name]:.4f}" for name in ("cosine", "least_cosine", "rank_correlation")]
        lines.append(f"| {row['power']:g} | {row['squared_error']:.1f} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = program.arguments("The best grids by the power of the error.", name="grid-powers", rounds=1)
    given = parser.parse_args()
    with program.set_up(given.threads, given.rounds) as about:
        torch.set_num_threads(given.threads)
        rows = list(measure())
    record.write(given.name, about, {}, rows)
    generated.put(PAGE, "powers", table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
