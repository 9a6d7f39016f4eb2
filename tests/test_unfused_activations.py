"""`fuse_activations_`: which activations, layers and uses of them it leaves alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from activation_blocks import Block, Functional, X, assert_close, epilogues, packed
from torch import nn
from transformers.activations import ACT2FN

import bittensor
from bittensor import Backend, QuantizedLinear, fuse_activations_


class WithTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x)


class WithExtraState(nn.Module):
    def get_extra_state(self) -> int:
        return 1

    def set_extra_state(self, state: int) -> None:
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x)


class OnlyInEvaluation(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.training else F.relu(x)


def hooked(module: nn.Module, kind: str = "forward_hook") -> Any:
    getattr(module, f"register_{kind}")(lambda *_: None)
    return module


def with_own_forward(module: nn.Module) -> Any:
    module.forward = functools.partial(type(module).forward, module)  # type: ignore[method-assign]
    return module


@pytest.mark.parametrize(
    "activation",
    [
        nn.GELU(approximate="tanh"),
        nn.PReLU(),
        nn.ReLU6(),
        nn.LeakyReLU(),
        nn.Tanh(),
        nn.Dropout(),
        nn.Identity(),
        Functional(lambda x: F.relu(x) + 1),
        Functional(lambda x: F.relu(x + 1)),
        Functional(lambda x: F.relu(F.relu(x))),
        Functional(lambda x: F.threshold(x, 0.1, 0.0)),
        Functional(lambda x: F.relu(x) if x.sum() > 0 else x),
        nn.Sequential(hooked(nn.ReLU())),
        with_own_forward(nn.ReLU()),
        WithTable(),
        WithExtraState(),
        OnlyInEvaluation(),
        *(ACT2FN[name] for name in ("gelu_new", "quick_gelu", "gelu_pytorch_tanh", "gelu_fast", "relu2")),
    ],
    ids=lambda each: type(each).__name__,
)
def test_other_activations_stay(activation: nn.Module) -> None:
    model = Block(activation)
    assert fuse_activations_(model) == ()
    assert model.activation is activation


class Residual(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return self.activation(y) + y


class ReturnsBoth(Block):
    def forward(self, x: torch.Tensor) -> Any:
        y = self.linear(x)
        return self.activation(y), y


class LayerTwice(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.linear(x)) + self.linear(x + 1)


class ActivationTwice(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.linear(x)) + self.activation(x)


class ReadsBias(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.linear(x)) + self.linear.bias


class ReadsWeight(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.linear(x)) + self.linear.weight.dequantize().sum(1)


class CallsForward(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.linear(x)) + self.linear.forward(x)


class Branching(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return self.activation(y) if y.sum() > 0 else y


class Optional(Block):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        y = self.linear(x)
        return self.activation(y) + y if mask is None else self.activation(y) * mask


class Variadic(Block):
    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        return self.activation(self.linear(given[0]))


class OtherInTraining(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return self.activation(y) + y if self.training else self.activation(y)


class OtherInEvaluation(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return self.activation(y) if self.training else self.activation(y) + y


class Remembers(Block):
    before: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.before = self.linear(x)
        return self.activation(self.before)


class AsksForTheType(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.activation(self.linear(x))
        return y + 1 if isinstance(self.activation, nn.GELU) else y


class FromElsewhere(Block):
    def __init__(self) -> None:
        super().__init__()
        self.others = (self.activation,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.others[0](self.linear(x))


class FromTheChild(Block):
    """The activation is called as a module of a child, but found under its own name first."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.ModuleDict({"activation": self.activation})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.child["activation"](self.linear(x))


class UnderTwoNames(Block):
    def __init__(self) -> None:
        super().__init__()
        self.same = self.linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.linear(x)) + self.same(x)


class HookedLayer(Block):
    def __init__(self, kind: str) -> None:
        super().__init__()
        hooked(self.linear, kind)


class HookedActivation(Block):
    def __init__(self, kind: str) -> None:
        super().__init__(hooked(nn.GELU(), kind))


class Subclass(QuantizedLinear):
    pass


class OtherLayer(Block):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.linear: Any = layer


class KeywordArgument(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(input=self.linear(x))


HOOKS = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")


@pytest.mark.parametrize(
    "make",
    [
        Residual,
        ReturnsBoth,
        LayerTwice,
        ActivationTwice,
        ReadsBias,
        ReadsWeight,
        CallsForward,
        Branching,
        Optional,
        Variadic,
        OtherInTraining,
        OtherInEvaluation,
        Remembers,
        AsksForTheType,
        FromElsewhere,
        FromTheChild,
        UnderTwoNames,
        KeywordArgument,
        *(functools.partial(HookedLayer, kind) for kind in HOOKS),
        *(functools.partial(HookedActivation, kind) for kind in HOOKS),
        lambda: OtherLayer(QuantizedLinear(packed().weight, epilogue="relu")),
        lambda: OtherLayer(Subclass(packed().weight)),
        lambda: OtherLayer(bittensor.nn.LoRALinear(packed())),
        lambda: OtherLayer(bittensor.nn.ScaledInputLinear(packed(), torch.full((32,), 2.0))),
        lambda: OtherLayer(nn.Linear(32, 32)),
        lambda: OtherLayer(with_own_forward(packed())),
        lambda: with_own_forward(Block()),
    ],
    ids=lambda make: getattr(make, "__name__", None),
)
def test_what_is_left_alone(backend: Backend, make: Callable[[], Block]) -> None:
    model = make().eval()
    children, attributes, before = dict(model.named_modules()), dict(vars(model)), epilogues(model)
    state, expected = torch.random.get_rng_state(), model(X)
    attributes |= {"before": model.before} if isinstance(model, Remembers) else {}
    assert fuse_activations_(model) == ()
    assert dict(model.named_modules()) == children
    assert epilogues(model) == before
    assert vars(model) == attributes, "tracing leaves nothing behind"
    assert torch.equal(torch.random.get_rng_state(), state)
    for result, other in zip(model(X), expected, strict=True):
        assert torch.equal(result, other)


def test_a_layer_in_several_places() -> None:
    layer = packed()
    model = nn.Sequential(nn.Sequential(layer, nn.ReLU()), layer)
    expected = model(X)
    assert fuse_activations_(model) == ()
    assert torch.equal(model(X), expected)
    block = Block()
    assert fuse_activations_(nn.Sequential(block, block)) == ("0.linear",), "the block is one, in two places"


def test_a_shared_activation_stays_where_it_is_needed() -> None:
    activation = nn.GELU()
    model = nn.ModuleDict({"first": Block(activation), "second": Residual(activation)})
    first, second = (model[name](X) for name in model)
    assert fuse_activations_(model) == ("first.linear",)
    assert type(model["first"].activation) is nn.Identity
    assert model["second"].activation is activation
    assert_close(model["first"](X), first)
    assert torch.equal(model["second"](X), second)
