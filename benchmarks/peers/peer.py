"""What a peer is, and the task that all of them are given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from bittensor_rivals.blocks import Blocks


@dataclass(frozen=True, order=True)
class Cell:
    """A linear layer ``[n, k]`` with a scale for each `group_size` columns, applied to `rows` rows of activations."""

    n: int
    k: int
    group_size: int
    rows: int

    def __str__(self) -> str:
        return f"{self.n}x{self.k} g{self.group_size} M={self.rows}"

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.n * self.k * self.rows


@dataclass(frozen=True)
class Weight:
    """A weight of 4 bits, symmetric: column k of row n is ``scales[n, k // group_size] * (codes[n, k] - 8)``.

    Its scales are numbers of bfloat16 and of float16, so that every peer can be given exactly this weight.
    """

    codes: torch.Tensor
    """uint8 ``[N, K]``, 0..15."""
    scales: torch.Tensor
    """float32 ``[N, K / group_size]``."""
    group_size: int

    @classmethod
    def random(cls, cell: Cell, seed: int) -> Weight:
        if cell.k % cell.group_size:
            raise ValueError(f"{cell}: expected columns that are a multiple of the group size")
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(0, 16, (cell.n, cell.k), dtype=torch.uint8, generator=generator)
        scales = torch.rand(cell.n, cell.k // cell.group_size, generator=generator) / 64 + 1 / 64
        return cls(codes, scales.bfloat16().float(), cell.group_size)

    @property
    def shape(self) -> tuple[int, int]:
        n, k = self.codes.shape
        return n, k

    @property
    def blocks(self) -> Blocks:
        """The weight as the rivals' constructions take it, a block for each group."""
        return Blocks(self.codes.view(len(self.codes), -1, self.group_size), self.scales, zeros=None)

    def dequantized(self) -> torch.Tensor:
        """float32 ``[N, K]``; exact, because a scale has 8 significant bits."""
        groups = self.codes.view(len(self.codes), -1, self.group_size).float().sub_(8)
        return groups.mul_(self.scales[:, :, None]).view(self.shape)


class Peer(ABC):
    """One configuration of one package.

    Args:
        name: as tables show it.
        weight_bits: bits of a stored weight, without its scale: 4 for those that solve the same problem.
        activations: "int8" if activations are quantized, otherwise "float".
        tolerance: of the relative error of its results, root mean square over all outputs: what its number formats
            must lose, not what it happens to lose.
        packages: distributions whose versions are recorded.
    """

    name: str
    weight_bits: int
    activations: str
    tolerance: float
    packages: tuple[str, ...] = ("torch",)

    def unsupported(self, cell: Cell) -> str | None:
        """Why it cannot compute this cell; None if it can."""
        return None

    @abstractmethod
    def build(self, weight: Weight, x: torch.Tensor, threads: int) -> Callable[[], object]:
        """A call that multiplies: returns ``[rows, N]``, as anything that `torch.as_tensor` takes.

        What a user does once is done here: conversion, packing, compilation, and the cast of x, float32 ``[rows, K]``,
        to the dtype that is fastest. A call computes the whole product. It uses `threads` threads, to which torch is
        already set. Peers are built many times in one process, and their weights must not share memory.
        """
