"""Quantization-aware training: outputs of the packed layer, gradients as they are defined, real digits."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from digits import accuracy, digits, train
from torch.nn import functional

import bittensor
from bittensor import Backend, QuantizeConfig, QuantizedLinear
from bittensor.nn import FakeQuantizedLinear

ZEROS = ("symmetric", "integer", "float")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = normal(6, 40)


def float_layer() -> torch.nn.Linear:
    layer = torch.nn.Linear(40, 24)
    with torch.no_grad():
        layer.weight.copy_(normal(24, 40, seed=1) * torch.linspace(0.1, 3, 24)[:, None])
        layer.bias.copy_(normal(24, seed=2))
    return layer


def stepped(config: QuantizeConfig, x: torch.Tensor = X) -> FakeQuantizedLinear:
    """A layer after a few steps, away from where it began."""
    layer = FakeQuantizedLinear.from_linear(float_layer(), config)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.02)
    for seed in range(3):
        optimizer.zero_grad()
        layer(x).backward(normal(len(x), 24, seed=seed).to(x.dtype))
        optimizer.step()
    return layer


@pytest.mark.parametrize("mode", ["int8", "float"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero", ZEROS)
def test_the_packed_layer_has_identical_outputs(backend: Backend, zero: str, bits: int, mode: str) -> None:
    for group_size, scale_dtype in product((16, None), (torch.float32, torch.bfloat16)):
        config = QuantizeConfig(bits, group_size, zero, scale_dtype=scale_dtype, activation_mode=mode)
        for layer in (FakeQuantizedLinear.from_linear(float_layer(), config), stepped(config)):
            packed = layer.to_quantized()
            assert type(packed) is QuantizedLinear
            assert (
                packed.weight.form
                == bittensor.quantize(layer.weight, bits, group_size, zero, scale_dtype=scale_dtype).form
            )
            for dtype in (torch.float32, torch.bfloat16):
                assert torch.equal(packed(X.to(dtype)), layer(X.to(dtype)))


@pytest.mark.parametrize("zero", ZEROS)
def test_it_starts_as_the_quantized_layer(backend: Backend, zero: str) -> None:
    config, source = QuantizeConfig(4, 16, zero, "mse"), float_layer()
    layer = FakeQuantizedLinear.from_linear(source, config)
    assert layer.quantized_weight().equal(config.quantize(source.weight))
    assert torch.equal(layer(X), QuantizedLinear.from_linear(source, config)(X))


def by_autograd(layer: FakeQuantizedLinear, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients by torch's autograd, with the rounding passed over: x -> x + (round(x) - x).detach()."""

    def straight(value: torch.Tensor) -> torch.Tensor:
        return value + (value.round() - value).detach()

    form, highest = layer.form, 2**layer.form.bits - 1
    weight, scales, bias = (each.detach().clone().requires_grad_() for each in (layer.weight, layer.scales, layer.bias))
    shifts = None if layer.shifts is None else layer.shifts.detach().clone().requires_grad_()

    def wide(of_groups: torch.Tensor) -> torch.Tensor:
        return of_groups.repeat_interleave(form.group_size, 1)[:, :40]

    if form.zero == "float":
        q = straight(((weight - wide(shifts)) / wide(scales)).clamp(0, highest))
        values = wide(scales) * q + wide(shifts)
    else:
        zero = torch.full((24, 40), 2.0 ** (form.bits - 1)) if shifts is None else wide(straight(shifts))
        lowest = 0 - zero  # clipped before it is rounded, as in the paper
        values = wide(scales) * straight((weight / wide(scales)).maximum(lowest).minimum(lowest + highest))
    x = x.clone().requires_grad_()
    functional.linear(x, values, bias).backward(normal(6, 24, seed=9))
    balance = (form.group_size * (2 ** (form.bits - 1) - 1 if form.zero == "symmetric" else highest)) ** -0.5
    grads = {"x": x.grad, "weight": weight.grad, "scales": scales.grad * balance, "bias": bias.grad}
    return grads if shifts is None else grads | {"shifts": shifts.grad * balance}


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("zero", ZEROS)
def test_gradients(backend: Backend, zero: str, bits: int) -> None:
    layer = stepped(QuantizeConfig(bits, 16, zero, activation_mode="float"))
    with torch.no_grad():
        layer.scales *= 0.6  # so that some weights are clipped
    layer.zero_grad()
    x = X.clone().requires_grad_()
    layer(x).backward(normal(6, 24, seed=9))
    got = {"x": x.grad} | {name: each.grad for name, each in layer.named_parameters()}
    expected = by_autograd(layer, X)
    assert got.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(got[name], grad, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert (got["weight"] == 0).any()
    assert (got["weight"] != 0).any()


def test_a_scale_of_zero_and_one_that_diverged(backend: Backend) -> None:
    layer = FakeQuantizedLinear.from_linear(float_layer(), group_size=16)
    with torch.no_grad():
        layer.scales[3] = 0
    layer(X).sum().backward()
    assert torch.equal(layer(X)[:, 3], layer.bias[3].expand(6))
    assert all(each.grad.isfinite().all() for each in layer.parameters())
    with torch.no_grad():
        layer.weight[2, 5] = torch.nan
    with pytest.raises(ValueError, match="has it diverged"):
        layer(X)


def test_meta_is_refused(backend: Backend) -> None:
    layer = FakeQuantizedLinear.from_linear(float_layer(), group_size=16)
    with pytest.raises(ValueError, match="x: expected a tensor with memory, got one on meta"):
        layer(X.to("meta"))
    with pytest.raises(ValueError, match="weight: expected a tensor with memory, got one on meta"):
        layer.to("meta")(X)


def test_models(backend: Backend) -> None:
    def model() -> torch.nn.Sequential:
        return torch.nn.Sequential(float_layer(), torch.nn.ReLU(), torch.nn.Linear(24, 8))

    network, config = model(), QuantizeConfig(bits=2, group_size=8)
    report = bittensor.prepare_qat_(network, config, lambda name, layer: name != "2")
    assert report.quantized == ("0",)
    assert report.excluded == ("2",)
    twin = model()
    bittensor.prepare_qat_(twin, config, lambda name, layer: name != "2")
    assert twin.load_state_dict(network.state_dict()) == ([], [])
    y = network(X)
    assert torch.equal(twin(X), y)
    with pytest.warns(UserWarning, match="prepare_qat_: 1 of 2 layers not quantized: 0: it is quantized already"):
        bittensor.prepare_qat_(network, config)
    assert bittensor.prepare_qat_(network, config, lambda *_: False).excluded == ("0", "2")
    y = network(X)
    assert bittensor.convert_qat_(network) == ("0", "2")
    assert torch.equal(network(X), y)
    assert network[0].weight.bits == 2
    with pytest.raises(ValueError, match="expected one with FakeQuantizedLinear layers"):
        bittensor.convert_qat_(network)
    with pytest.raises(ValueError, match="use its method to_quantized"):
        bittensor.convert_qat_(FakeQuantizedLinear.from_linear(float_layer(), config))
    with pytest.raises(TypeError, match="either a config or its settings"):
        FakeQuantizedLinear.from_linear(float_layer(), config, bits=4)


def test_a_forward_set_on_a_layer_is_kept() -> None:
    layer = float_layer()
    layer.forward = torch.zeros_like
    network = torch.nn.Sequential(layer)
    with pytest.warns(UserWarning, match="prepare_qat_: 1 of 1 layers not quantized: 0: it has a forward of its own"):
        bittensor.prepare_qat_(network, QuantizeConfig(group_size=8))
    assert network[0] is layer


@pytest.mark.parametrize("zero", ["symmetric", "integer"])
@pytest.mark.parametrize(("weight", "bias"), list(product([False, True], repeat=2)))
def test_what_is_frozen_stays_frozen(zero: str, weight: bool, bias: bool) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(40, 24), torch.nn.Linear(24, 8, bias=False))
    network[0].weight.requires_grad_(weight)
    network[0].bias.requires_grad_(bias)
    bittensor.prepare_qat_(network, QuantizeConfig(bits=4, group_size=8, zero=zero))
    names = {"weight", "scales"} | ({"shifts"} if zero == "integer" else set())
    expected = {f"1.{name}" for name in names}
    expected |= ({f"0.{name}" for name in names} if weight else set()) | ({"0.bias"} if bias else set())
    assert {name for name, parameter in network.named_parameters() if parameter.requires_grad} == expected
    network(normal(3, 40)).sum().backward()
    assert {name for name, parameter in network.named_parameters() if parameter.grad is not None} == expected


def test_training_recovers_what_two_bits_lose() -> None:
    """examples/qat_mnist.py in short, with rounding that knows no better than to span the range."""
    training, held_out = digits()
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(784, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    train(network, training, epochs=3, rate=3e-3)
    full = accuracy(network, held_out)
    bittensor.prepare_qat_(network, QuantizeConfig(bits=2, group_size=None))
    before = accuracy(network, held_out)
    train(network, training, epochs=2, rate=1e-3)
    trained = accuracy(network, held_out)
    bittensor.convert_qat_(network)
    assert accuracy(network, held_out) == trained
    assert before < full - 5, f"float32 {full:.1f} %, rounded {before:.1f} %: nothing to recover"
    assert trained > full - 2, f"float32 {full:.1f} %, trained {trained:.1f} %"
