"""MNIST trained for 4 and for 2 bits: quantization-aware training, beside quantization after training.

The float32 network of mnist.py is trained on real digits. Its layers then become, at each width:

- packed ones at once (`bittensor.quantize_`), by rounding alone; and
- layers that train as they will compute when packed (`bittensor.prepare_qat_`), and after a few epochs packed ones
  (`bittensor.convert_qat_`) with the same outputs, bit for bit, which is checked.

The float32 network is also trained on for as many epochs, so that the comparison is between equals.

    python examples/qat_mnist.py --help
"""

from __future__ import annotations

import copy
import sys
from statistics import mean
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from mnist import HELD_OUT, Digits, load_digits, to_float, train_float
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import bittensor

WIDTHS = (4, 2)
ACCURACY_BOUND = 0.3  # percentage points that 4 bits may lose against float32, in the mean over the seeds
BATCH = 128

console = Console()


def config(bits: int) -> bittensor.QuantizeConfig:
    """One scale for each row, found by least squares; activations are rounded to int8 as they come."""
    return bittensor.QuantizeConfig(bits, group_size=None, method="mse")


def fine_tune(network: torch.nn.Module, digits: Digits, seed: int, epochs: int) -> torch.nn.Module:
    """Train on, at a tenth of the rate that the network was trained with. Scales are not decayed towards 0."""
    torch.manual_seed(seed)
    network.train()
    images = to_float(digits.pixels).unflatten(1, (28, 28))
    scales = [parameter for name, parameter in network.named_parameters() if name.endswith("scales")]
    others = [parameter for name, parameter in network.named_parameters() if not name.endswith("scales")]
    optimizer = torch.optim.AdamW([{"params": others}, {"params": scales, "weight_decay": 0.0, "lr": 4e-5}], lr=4e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(images) // BATCH))
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH):
            shift = torch.randint(-2, 3, (2,)).tolist()
            loss = F.cross_entropy(network(images[rows].roll(shift, (1, 2)).flatten(1)), digits.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.inference_mode()
def answers(network: torch.nn.Module, digits: Digits) -> torch.Tensor:
    """Logits ``[n, 10]``."""
    return network(to_float(digits.pixels))


def accuracy(network: torch.nn.Module, digits: Digits) -> float:
    """Per cent of digits that are read right."""
    return 100 * float((answers(network, digits).argmax(1) == digits.labels).float().mean())


def run(seed: int, epochs: int, progress: Progress) -> dict[str, float]:
    """Accuracies on the held-out digits, by what was done."""
    train, held_out = load_digits(seed)
    network = train_float(train, seed, progress)
    found = {"float32": accuracy(network, held_out)}
    found["float32, trained on"] = accuracy(fine_tune(copy.deepcopy(network), train, seed, epochs), held_out)
    for bits in WIDTHS:
        rounded = copy.deepcopy(network)
        bittensor.quantize_(rounded, config(bits), progress=False)
        found[f"{bits} bits, rounded"] = accuracy(rounded, held_out)

        trained = copy.deepcopy(network)
        bittensor.prepare_qat_(trained, config(bits), progress=False)
        task = progress.add_task(f"training at {bits} bits", total=1)
        fine_tune(trained, train, seed, epochs)
        progress.update(task, completed=1)
        before = answers(trained, held_out)
        bittensor.convert_qat_(trained)
        if not torch.equal(answers(trained, held_out), before):
            sys.exit(f"FAILED: packing the network of {bits} bits changed its outputs")
        found[f"{bits} bits, trained"] = accuracy(trained, held_out)
    return found


def main(
    seeds: Annotated[int, typer.Option(help="Splits and trainings, from seed 0 on.")] = 3,
    epochs: Annotated[int, typer.Option(help="Epochs of quantization-aware training.")] = 10,
) -> None:
    """Train, quantize with and without training, and compare accuracies on held-out digits."""
    torch.set_num_threads(1)  # as fast as two in training this small, and steady
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        runs = [run(seed, epochs, progress) for seed in range(seeds)]
    title = f"per cent of {HELD_OUT} held-out digits that are read right"
    table = Table("", *(f"seed {seed}" for seed in range(seeds)), "mean", title=title)
    for name in runs[0]:
        values = [each[name] for each in runs]
        table.add_row(name, *(f"{value:.1f}" for value in values), f"{mean(values):.2f}")
    console.print(table)
    console.print("packed layers gave the outputs of training, bit for bit")
    baseline, trained = (mean(each[name] for each in runs) for name in ("float32, trained on", "4 bits, trained"))
    verdict = f"4 bits are {baseline - trained:+.2f} percentage points below float32, the bound is {ACCURACY_BOUND}"
    if baseline - trained > ACCURACY_BOUND:
        sys.exit(f"FAILED: {verdict}")
    console.print(f"passed: {verdict}")


if __name__ == "__main__":
    typer.run(main)
