"""A transformer block through torch.compile, packed and in float32: times, and how far the outputs are apart.

The block has attention and a gated MLP. Both versions are compiled with ``fullgraph=True`` and dynamic lengths, so that
each has one program for all lengths. Inductor fuses norms, activations and sums around the operators of the packed
layers. What it fuses rounds as it likes; an activation that then falls to the other side of a tie between two int8
codes moves the output by a part of a step, which is the difference that the last column shows.

    python examples/compiled_block.py --help
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table

import bittensor

console = Console()


class Block(torch.nn.Module):
    """Causal attention and a gated MLP, each behind a norm and beside a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = torch.nn.RMSNorm(width), torch.nn.RMSNorm(width)
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.gate, self.up = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, 3 * width)
        self.down = torch.nn.Linear(3 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Floats ``[length, width]`` to the same shape."""
        # As a batch of one: torch has a kernel of attention for four dimensions only, and composes it for three.
        q, k, v = self.qkv(self.norm1(x)).unflatten(1, (3, 1, self.heads, -1)).permute(1, 2, 3, 0, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)[0]
        x = x + self.out(mixed.transpose(0, 1).flatten(1))
        hidden = self.norm2(x)
        return x + self.down(F.silu(self.gate(hidden)) * self.up(hidden))


def milliseconds(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, rounds: int) -> float:
    """The median time of a call, after a few to warm up."""
    times = []
    for _ in range(rounds + 3):
        start = time.perf_counter()
        function(x)
        times.append(time.perf_counter() - start)
    return 1e3 * median(times[3:])


def main(
    width: Annotated[int, typer.Option(min=64, help="Features; a multiple of 64.")] = 1024,
    bits: Annotated[int, typer.Option(help="Bits of a weight: 2, 4 or 8.")] = 4,
    lengths: Annotated[list[int] | None, typer.Option("--length", help="Tokens; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Calls that are timed.")] = 30,
) -> None:
    """Compile a transformer block, packed and in float32, and show it beside eager."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of Inductor, by torch
    torch.manual_seed(0)
    block = Block(width, width // 64).eval()
    packed = Block(width, width // 64).eval()
    packed.load_state_dict(block.state_dict())
    bittensor.quantize_(packed, bittensor.QuantizeConfig(bits=bits, group_size=64))
    versions = {"float32": block, f"{bits} bits": packed}
    programs = {name: torch.compile(model, fullgraph=True, dynamic=True) for name, model in versions.items()}
    columns = [f"{name}, {how}" for name in versions for how in ("eager", "compiled")]
    table = Table("tokens", *columns, "compiled against eager", title=f"One block of width {width}, ms")
    with torch.inference_mode():
        for length in lengths or [4, 32, 128, 512]:
            x = torch.randn(length, width)
            times = [milliseconds(f, x, rounds) for name in versions for f in (versions[name], programs[name])]
            y, fused = packed(x), programs[f"{bits} bits"](x)
            difference = ((fused - y).norm() / y.norm()).item()
            table.add_row(str(length), *(f"{each:.2f}" for each in times), f"{difference:.1e}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
