"""`fuse_activations_`: which activations it fuses, in which order, and that layers compute the same afterwards."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from activation_blocks import CONFIG, Block, Functional, X, assert_close, epilogues, packed
from torch import nn
from transformers.activations import ACT2FN

from bittensor import Backend, fuse_activations_


class Wrapped(nn.Module):
    """An activation that holds one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class Named(nn.GELU):
    """A subclass that computes the same."""


FUSED = {
    "relu": (nn.ReLU(), "relu"),
    "relu in place": (nn.ReLU(inplace=True), "relu"),
    "gelu": (nn.GELU(), "gelu"),
    "silu": (nn.SiLU(inplace=True), "silu"),
    "F.gelu": (Functional(F.gelu), "gelu"),
    "F.silu": (Functional(F.silu), "silu"),
    "torch.relu": (Functional(torch.relu), "relu"),
    "wrapped": (Wrapped(), "silu"),
    "subclass": (Named(), "gelu"),
    "transformers gelu": (ACT2FN["gelu"], "gelu"),
    "transformers silu": (ACT2FN["silu"], "silu"),
    "transformers swish": (ACT2FN["swish"], "silu"),
    "transformers relu": (ACT2FN["relu"], "relu"),
}


@pytest.mark.parametrize("mode", ["int8", "float"])
@pytest.mark.parametrize("name", FUSED)
def test_fused_layers_compute_the_same(backend: Backend, name: str, mode: str) -> None:
    activation, epilogue = FUSED[name]
    config = dataclasses.replace(CONFIG, activation_mode=mode)
    model = nn.Sequential(packed(config), copy.deepcopy(activation), packed(config)).eval()
    with torch.no_grad():
        expected = model(X)
    keys = list(model.state_dict())
    assert fuse_activations_(model) == ("0",)
    assert epilogues(model) == {"0": epilogue}
    assert type(model[1]) is nn.Identity
    assert not model[1].training
    assert list(model.state_dict()) == keys
    assert_close(model(X), expected)
    assert fuse_activations_(model) == (), "there is no more to fuse"


class Counting(Block):
    """Draws random numbers, changes a buffer, and has a constant."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        y = F.dropout(self.activation(self.linear(x)), 0.5, self.training)
        return y + 0 * torch.randn(32) + torch.tensor(1.0)


def test_tracing_changes_nothing() -> None:
    model = Counting()
    names, state = set(vars(model)), torch.random.get_rng_state()
    assert fuse_activations_(model) == ("linear",)
    assert set(vars(model)) == names
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (int(model.calls), model.training) == (0, True)
    assert_close(model.eval()(X), Block()(X) + 1)


def test_names_and_order() -> None:
    model = nn.Sequential(
        Block(nn.SiLU()), nn.Sequential(packed(), nn.ReLU(), packed(), nn.ReLU()), packed(), nn.GELU()
    )
    expected = model(X)
    assert fuse_activations_(model) == ("2", "0.linear", "1.0", "1.2")
    assert epilogues(model) == {"0.linear": "silu", "1.0": "relu", "1.2": "relu", "2": "gelu"}
    assert_close(model(X), expected)


def test_epilogues_that_the_backend_does_not_declare(monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    fewer = dataclasses.replace(backend.capabilities, epilogues=frozenset({None, "relu"}))
    monkeypatch.setattr(backend, "capabilities", fewer)
    model = nn.Sequential(Block(nn.GELU()), Block(nn.ReLU()))
    assert fuse_activations_(model) == ("1.linear",)


@pytest.mark.parametrize("wrong", [None, "model", {"a": nn.ReLU()}, Block])
def test_what_is_no_module(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got (NoneType|str|dict|type)"):
        fuse_activations_(wrong)


def test_a_layer_alone() -> None:
    layer = packed()
    assert fuse_activations_(layer) == ()
    expected = layer(X).relu()
    layer.set_epilogue("relu")
    assert torch.equal(layer(X), expected)
    with pytest.raises(ValueError, match="epilogue: expected one of"):
        layer.set_epilogue("tanh")
    assert layer.epilogue == "relu"
