"""Layers under the transforms of torch.func, against torch.autograd and against one call after the other."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.func import functional_call, grad, jacrev, vjp, vmap

import bittensor
from bittensor import Backend, QuantizedLinear, linear, quantize
from bittensor.nn import FeedForwardDown, FeedForwardUp, LoRALinear, QuantizedConv2d

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch.func, when it is first used

Tensors = tuple[torch.Tensor, torch.Tensor]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, BIAS = normal(5, 64), normal(24, seed=1)
WEIGHT = quantize(normal(24, 64, seed=2), group_size=32, zero="float")


@pytest.fixture(params=[None, "relu", "gelu", "silu"])
def epilogue(request: pytest.FixtureRequest) -> str | None:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=["int8", "float"])
def layer(request: pytest.FixtureRequest, backend: Backend, epilogue: str | None) -> Callable[..., torch.Tensor]:
    def call(x: torch.Tensor, bias: torch.Tensor | None = BIAS) -> torch.Tensor:
        return linear(x, WEIGHT, bias, request.param, epilogue)

    return call


def test_grad_is_that_of_autograd(layer: Callable[..., torch.Tensor]) -> None:
    def loss(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return layer(x, bias).square().sum()

    x, bias = X.clone().requires_grad_(), BIAS.clone().requires_grad_()
    expected = torch.autograd.grad(loss(x, bias), (x, bias))
    gradients: Tensors = grad(loss, argnums=(0, 1))(X, BIAS)
    assert all(torch.equal(got, wanted) for got, wanted in zip(gradients, expected, strict=True))
    y, pullback = vjp(loss, X, BIAS)
    assert torch.equal(y, loss(X, BIAS))
    assert all(torch.equal(got, wanted) for got, wanted in zip(pullback(torch.ones(())), expected, strict=True))


def test_vmap_is_one_call_with_the_same_bits(layer: Callable[..., torch.Tensor]) -> None:
    images = normal(3, 64, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a slow fallback
        assert torch.equal(vmap(layer)(X), layer(X))
        assert torch.equal(vmap(layer, in_dims=1, out_dims=1)(X.T.contiguous()), layer(X).T)
        assert torch.equal(vmap(vmap(layer, in_dims=1))(images), layer(images.mT))


def test_vmap_over_biases(layer: Callable[..., torch.Tensor]) -> None:
    biases = normal(5, 24, seed=3)
    expected = torch.stack([layer(x, bias) for x, bias in zip(X, biases, strict=True)])
    assert torch.equal(vmap(layer)(X, biases), expected)
    assert torch.equal(vmap(layer, in_dims=(0, 1))(X, biases.T), expected)
    expected = torch.stack([layer(X[0], bias) for bias in biases])
    assert torch.equal(vmap(layer, in_dims=(None, 0))(X[0], biases), expected)


def test_gradients_of_each_sample(layer: Callable[..., torch.Tensor]) -> None:
    def loss(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return layer(x, bias).tanh().sum()

    of_x, of_bias = vmap(grad(loss, argnums=(0, 1)), in_dims=(0, None))(X, BIAS)
    for i, x in enumerate(X):
        expected: Tensors = grad(loss, argnums=(0, 1))(x, BIAS)
        torch.testing.assert_close(of_x[i], expected[0])
        torch.testing.assert_close(of_bias[i], expected[1])
    torch.testing.assert_close(grad(lambda x: vmap(layer)(x).tanh().sum())(X), grad(loss)(X, BIAS))


def test_jacobian_and_second_derivatives(layer: Callable[..., torch.Tensor]) -> None:
    torch.testing.assert_close(jacrev(layer)(X[0]), torch.autograd.functional.jacobian(layer, X[0]))  # type: ignore[no-untyped-call]

    def loss(x: torch.Tensor) -> torch.Tensor:
        return layer(x).tanh().sum()

    expected = torch.autograd.functional.hessian(loss, X[0])  # type: ignore[no-untyped-call]
    assert expected.abs().max() > 0
    torch.testing.assert_close(jacrev(jacrev(loss))(X[0]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "transform", [lambda f: grad(lambda x: f(x).sum()), vmap, jacrev], ids=["grad", "vmap", "jacrev"]
)
def test_what_a_first_call_keeps_outlives_the_transform(transform: Callable[..., Any], backend: Backend) -> None:
    weight, twin = (quantize(normal(24, 64, seed=2), group_size=32) for _ in range(2))
    transform(lambda x: linear(x, weight))(X)
    assert torch.equal(linear(X, weight), linear(X, twin))
    transform(lambda x: weight.words.sum() * x)(X)
    assert torch.equal(weight.words, twin.words)


class Int8Only(type(bittensor.get_backend("reference"))):  # type: ignore[misc]
    """A backend that multiplies with int8 activations alone."""

    capabilities = dataclasses.replace(
        bittensor.get_backend("reference").capabilities, activation_modes=frozenset({"int8"})
    )


def test_second_derivatives_without_float_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        return linear(x, quantize(normal(24, 64, seed=2), group_size=32)).tanh().sum()

    with bittensor.use_backend("reference"):
        expected = jacrev(jacrev(loss))(X[0])
    monkeypatch.setitem(bittensor.registry._loaded, "int8-only", Int8Only())
    with bittensor.use_backend("int8-only"):
        torch.testing.assert_close(jacrev(jacrev(loss))(X[0]), expected, atol=1e-4, rtol=1e-4)


def test_adapters_of_each_sample(backend: Backend) -> None:
    torch.manual_seed(0)
    base = QuantizedLinear.from_linear(torch.nn.Linear(64, 24), group_size=32)
    model = LoRALinear(base, rank=4)
    torch.nn.init.normal_(model.lora_b)
    adapters = {name: value.detach() for name, value in model.named_parameters() if "lora" in name}
    assert len(adapters) == 2

    def loss(adapters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(model, adapters, (x,)).square().sum()

    gradients = vmap(grad(loss), in_dims=(None, 0))(adapters, X)
    for i, x in enumerate(X):
        model.zero_grad()
        model(x).square().sum().backward()
        for name, parameter in model.named_parameters():
            if name in adapters:
                torch.testing.assert_close(gradients[name][i], parameter.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop.*aten..unfold_backward")  # torch has no rule for it
def test_convolutions_and_feed_forward_networks(backend: Backend) -> None:
    convolution = QuantizedConv2d.from_conv(torch.nn.Conv2d(8, 8, 3, padding=1), group_size=None)
    up, down = (QuantizedLinear.from_linear(torch.nn.Linear(*sizes), group_size=32) for sizes in ((64, 96), (96, 64)))
    up.set_epilogue("gelu")
    first = FeedForwardUp(up)
    network = torch.nn.Sequential(first, FeedForwardDown(down, first))
    for module, x in ((convolution, normal(3, 8, 6, 6)), (network, X)):

        def loss(x: torch.Tensor, module: torch.nn.Module = module) -> torch.Tensor:
            result: torch.Tensor = module(x).square().sum()
            return result

        expected = x.clone().requires_grad_()
        loss(expected).backward()
        assert expected.grad is not None
        torch.testing.assert_close(grad(loss)(x), expected.grad)
        torch.testing.assert_close(vmap(grad(loss))(x), expected.grad)
        torch.testing.assert_close(vmap(module)(x), module(x))


def test_what_does_not_fit_is_refused_as_ever(backend: Backend) -> None:
    for call in (grad(lambda x: linear(x, WEIGHT).sum()), vmap(lambda x: linear(x, WEIGHT))):
        with pytest.raises(ValueError, match=r"^x: expected"):
            call(normal(5, 63))
