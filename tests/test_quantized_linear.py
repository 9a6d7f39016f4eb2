"""`QuantizedLinear` as a module: saving, loading, copying, moving, converting."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.utils.parametrize
from safetensors.torch import load_file, save_file

import bittensor
from bittensor import Backend, QuantizeConfig, QuantizedLinear, quantize, use_backend

ZEROS = ("symmetric", "integer", "float")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = normal(3, 40)
WEIGHT = quantize(normal(21, 40, seed=1), group_size=16, zero="integer")


def float_layer(outputs: int = 21, columns: int = 40, bias: bool = True) -> torch.nn.Linear:
    layer = torch.nn.Linear(columns, outputs, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(normal(outputs, columns, seed=1))
        if bias:
            layer.bias.copy_(normal(outputs, seed=2))
    return layer


def quantized_layer(zero: str = "integer", **settings: Any) -> QuantizedLinear:
    return QuantizedLinear.from_linear(float_layer(), **{"group_size": 16, "zero": zero} | settings)


@pytest.fixture
def layer(backend: Backend) -> QuantizedLinear:
    layer = quantized_layer()
    layer(X)
    return layer


@pytest.mark.parametrize("mode", ["int8", "float"])
@pytest.mark.parametrize("bias", [False, True])
def test_from_linear(backend: Backend, mode: str, bias: bool) -> None:
    source = float_layer(bias=bias).eval()
    config = QuantizeConfig(bits=8, group_size=16, zero="integer", activation_mode=mode)
    layer = QuantizedLinear.from_linear(source, config)
    weight = quantize(source.weight, 8, 16, "integer")
    assert torch.equal(layer(X), bittensor.linear(X, weight, source.bias.detach() if bias else None, mode))
    assert torch.allclose(layer(X), source(X), atol=0.2)
    assert not layer.training
    twin = QuantizedLinear.from_linear(source, bits=8, group_size=16, zero="integer", activation_mode=mode)
    assert torch.equal(twin(X), layer(X))
    with pytest.raises(TypeError, match="config: expected either a config or its settings, got both"):
        QuantizedLinear.from_linear(source, config, bits=4)


def test_from_quantized(backend: Backend) -> None:
    weight, bias = copy.deepcopy(WEIGHT), normal(21)
    layer = QuantizedLinear.from_quantized(weight, bias, epilogue="relu")
    assert torch.equal(layer(X), bittensor.linear(X, weight, bias).relu())
    assert (layer.in_features, layer.out_features) == (40, 21)
    assert layer.weight is weight


@pytest.mark.parametrize("zero", ZEROS)
def test_state_dict_is_canonical(backend: Backend, zero: str) -> None:
    layer = quantized_layer(zero)
    before = layer.state_dict()
    layer(X)
    extra = {"symmetric": set(), "integer": {"zeros"}, "float": {"offsets"}}[zero]
    assert set(before) == {"words", "scales", "form", "bias"} | extra
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert set(torch.nn.Sequential(layer).state_dict()) == {f"0.{name}" for name in before}


def blank(zero: str = "integer", **settings: Any) -> QuantizedLinear:
    layer = quantized_layer(zero, **settings)
    weight = quantize(
        torch.zeros(21, 40), layer.weight.bits, layer.weight.group_size, zero, scale_dtype=layer.weight.form.scale_dtype
    )
    return QuantizedLinear(weight, torch.zeros(21))


@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("safe", [False, True])
def test_saving_and_loading(backend: Backend, tmp_path: Path, zero: str, scale_dtype: torch.dtype, safe: bool) -> None:
    layer = quantized_layer(zero, scale_dtype=scale_dtype)
    expected = layer(X)
    if safe:
        save_file(layer.state_dict(), tmp_path / "layer.safetensors")
        loaded = load_file(tmp_path / "layer.safetensors")
    else:
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
    for name in ("cpp", "reference"):
        with use_backend(name):
            twin = blank(zero, scale_dtype=scale_dtype)
            assert not torch.equal(twin(X), expected)
            assert twin.load_state_dict(loaded) == ([], [])
            assert torch.equal(twin(X), expected)
            assert twin.weight.equal(layer.weight)
            assigned = blank(zero, scale_dtype=scale_dtype)
            assigned.load_state_dict(loaded, assign=True)
            assert torch.equal(assigned(X), expected)


def test_loading_copies(layer: QuantizedLinear) -> None:
    state = layer.state_dict()
    twin = blank()
    twin.load_state_dict(state)
    for tensor in state.values():
        tensor.zero_()
    assert torch.equal(twin(X), quantized_layer()(X))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"bits": 8}, r"form: the layer has bits=4, but the saved weight has 8"),
        ({"group_size": 8}, "form: the layer has group_size=16, but the saved weight has 8"),
        ({"zero": "float"}, "form: the layer has zero=integer, but the saved weight has float"),
        ({"scale_dtype": torch.float16}, "form: the layer has scale dtype=torch.float32, but .* torch.float16"),
    ],
)
def test_loading_another_form(layer: QuantizedLinear, other: dict[str, Any], message: str) -> None:
    expected = layer(X)
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(quantized_layer(**other).state_dict())
    assert torch.equal(layer(X), expected), "a refused weight changes nothing"


def test_loading_incomplete_or_damaged(layer: QuantizedLinear) -> None:
    def changed(**changes: Any) -> dict[str, torch.Tensor]:
        state = layer.state_dict() | changes
        return {name: tensor for name, tensor in state.items() if tensor is not None}

    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "words"'):
        layer.load_state_dict(changed(words=None))
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "form"'):
        layer.load_state_dict(changed(form=None))
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "offsets"'):
        layer.load_state_dict(changed(offsets=torch.zeros(21, 3)))
    with pytest.raises(RuntimeError, match=r"words: expected int64 \[21, 3\], got int64 \[21, 2\]"):
        layer.load_state_dict(changed(words=layer.state_dict()["words"][:, :2]))
    with pytest.raises(RuntimeError, match="scales: expected finite values"):
        layer.load_state_dict(changed(scales=torch.full((21, 3), torch.nan)))
    with pytest.raises(RuntimeError, match="form: expected version 1 of the format, got 2"):
        layer.load_state_dict(changed(form=layer.state_dict()["form"] + torch.tensor([1, 0, 0, 0, 0, 0, 0])))
    with pytest.raises(RuntimeError, match=r"form: expected int64 \[7\]"):
        layer.load_state_dict(changed(form=torch.zeros(3)))
    assert torch.equal(layer(X), quantized_layer()(X))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies(layer: QuantizedLinear, duplicate: Callable[[QuantizedLinear], QuantizedLinear]) -> None:
    expected = layer(X)
    twin = duplicate(layer)
    assert torch.equal(twin(X), expected)
    assert twin.bias is not None
    twin.bias.zero_()
    for tensor in twin.weight._held.tensors:
        tensor.zero_()
    assert torch.equal(layer(X), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_to_a_dtype(layer: QuantizedLinear, dtype: torch.dtype) -> None:
    before = layer.weight.tensors()
    layer.to(dtype)
    assert layer.bias is not None
    assert layer.bias.dtype is dtype
    for name, tensor in layer.weight.tensors().items():
        assert tensor.dtype is before[name].dtype
        assert torch.equal(tensor, before[name])
    y = layer(X.to(dtype))
    assert y.dtype is dtype
    assert torch.equal(y, bittensor.linear(X.to(dtype), layer.weight, layer.bias))


def test_other_devices_are_refused_at_forward(layer: QuantizedLinear) -> None:
    layer.to("meta")
    assert layer.weight.device.type == "meta"
    with pytest.raises(ValueError, match=r"weight: expected one on cpu \(backend '\w+'\), got one on meta"):
        layer(X)
    layer.to_empty(device="cpu")
    layer.load_state_dict(quantized_layer().state_dict())
    assert torch.equal(layer(X), quantized_layer()(X))


def test_parameters(layer: QuantizedLinear) -> None:
    assert [(name, each.requires_grad) for name, each in layer.named_parameters()] == [("bias", False)]
    assert not list(layer.buffers())
    assert not layer(X).requires_grad
    assert layer(X.clone().requires_grad_()).requires_grad


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_a_bias_in_place_of_its_own(layer: QuantizedLinear) -> None:
    bias = normal(21, seed=3)
    called = torch.func.functional_call(layer, {"bias": bias}, (X,))
    assert torch.equal(called, bittensor.linear(X, layer.weight, bias))
    doubled = bittensor.linear(X, layer.weight, 2 * layer.bias)
    torch.nn.utils.parametrize.register_parametrization(layer, "bias", Doubled())
    assert torch.equal(layer(X), doubled)


def test_repr(layer: QuantizedLinear) -> None:
    expected = "QuantizedLinear(in_features=40, out_features=21, bits=4, group_size=16, zero='integer', scales=float32"
    assert repr(layer).startswith(expected)
    assert "epilogue='relu'" in repr(QuantizedLinear(layer.weight, epilogue="relu"))


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        ((X,), {}, TypeError, "weight: expected a QuantizedWeight, got Tensor"),
        ((WEIGHT, X), {}, ValueError, r"bias: expected \[21\]"),
        ((WEIGHT,), {"activation_mode": "fp8"}, ValueError, "activation_mode"),
        ((WEIGHT,), {"epilogue": "tanh"}, ValueError, "epilogue"),
    ],
)
def test_refusals(arguments: tuple[Any, ...], settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        QuantizedLinear(*arguments, **settings)
