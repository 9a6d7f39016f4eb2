"""`QuantizedLinear` as a module, and the one copy of its weight: saving, loading, copying, moving, converting."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import bittensor
from bittensor import Backend, PreparedWeight, QuantizeConfig, QuantizedLinear, QuantizedWeight, quantize, use_backend

ZEROS = ("symmetric", "integer", "float")
FORMS = [
    (bits, group_size, zero, dtype)
    for bits, group_size, dtype in [(2, None, torch.float32), (4, 16, torch.float16), (8, 24, torch.bfloat16)]
    for zero in ZEROS
]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = normal(3, 40)


def float_layer(outputs: int = 21, columns: int = 40, bias: bool = True) -> torch.nn.Linear:
    layer = torch.nn.Linear(columns, outputs, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(normal(outputs, columns, seed=1))
        if bias:
            layer.bias.copy_(normal(outputs, seed=2))
    return layer


def quantized_layer(zero: str = "integer", **settings: Any) -> QuantizedLinear:
    return QuantizedLinear.from_linear(float_layer(), **{"group_size": 16, "zero": zero} | settings)


def weight_of(bits: int, group_size: int | None, zero: str, dtype: torch.dtype) -> QuantizedWeight:
    return quantize(normal(21, 40, seed=1), bits, group_size, zero, scale_dtype=dtype)


@pytest.fixture
def layer(backend: Backend) -> QuantizedLinear:
    layer = quantized_layer()
    layer(X)
    return layer


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_prepare_and_restore(backend: Backend, form: tuple[int, int | None, str, torch.dtype]) -> None:
    weight = weight_of(*form)
    prepared = backend.prepare(weight)
    assert isinstance(prepared, PreparedWeight)
    assert (prepared.form, prepared.layout) == (weight.form, backend.capabilities.layout)
    restored = backend.restore(prepared)
    assert restored.form == weight.form
    tensors = weight.tensors()
    assert restored.tensors().keys() == tensors.keys()
    for name, tensor in restored.tensors().items():
        assert torch.equal(tensor, tensors[name]), name
        assert tensor.dtype is tensors[name].dtype


def test_variants_share_one_layout() -> None:
    cpp, weight = bittensor.get_backend("cpp"), weight_of(4, 16, "integer", torch.float16)
    expected = cpp.prepare(weight)
    for name in cpp.capabilities.variants:
        variant = bittensor.get_backend(f"cpp:{name}")
        assert variant.capabilities.layout == cpp.capabilities.layout
        assert torch.equal(variant.prepare(weight).tensors[0], expected.tensors[0])
        assert variant.restore(expected).equal(weight)


def test_a_foreign_layout_is_refused() -> None:
    cpp, reference = bittensor.get_backend("cpp"), bittensor.get_backend("reference")
    weight = weight_of(4, 16, "integer", torch.float32)
    for backend, other in ((cpp, reference), (reference, cpp)):
        foreign = other.prepare(weight)
        with pytest.raises(ValueError, match=f"weight: expected the layout .*, got '{foreign.layout}'"):
            backend.linear(X, foreign, None, "int8", None)
        with pytest.raises(ValueError, match="weight: expected the layout"):
            backend.restore(foreign)


def test_a_damaged_blob_is_refused() -> None:
    cpp = bittensor.get_backend("cpp")
    prepared = cpp.prepare(weight_of(4, 16, "integer", torch.float32))
    for blob in (prepared.tensors[0][:-1], prepared.tensors[0][:10], torch.zeros(1000, dtype=torch.uint8)):
        with pytest.raises((ValueError, RuntimeError), match="prepared weight"):
            cpp.linear(X, PreparedWeight(prepared.form, prepared.layout, (blob,)), None, "int8", None)


@pytest.mark.parametrize("zero", ZEROS)
def test_a_weight_is_held_once(zero: str) -> None:
    weight = weight_of(4, 16, zero, torch.float16)
    original, tensors, shown = copy.deepcopy(weight), weight.tensors(), repr(weight)
    with use_backend("cpp"):
        bittensor.linear(X, weight)
    held = weight._held.tensors
    assert len(held) == 1
    assert all(tensor.data_ptr() != held[0].data_ptr() for tensor in tensors.values())
    assert weight.held_nbytes == held[0].numel()
    assert (repr(weight), weight.nbytes) == (shown, original.nbytes)
    assert weight.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    for name, tensor in weight.tensors().items():
        assert torch.equal(tensor, tensors[name]), name
        assert torch.equal(getattr(weight, name), tensors[name]), name
    assert len(weight._held.tensors) == 1, "restoring keeps nothing"
    assert weight.equal(original)
    assert original.equal(weight)
    assert torch.equal(weight.dequantize(), original.dequantize())
    with use_backend("reference"):
        bittensor.linear(X, weight)
    assert [tensor.data_ptr() for tensor in weight._held.tensors] == [
        each.data_ptr() for each in weight.canonical().tensors
    ]
    assert weight.held_nbytes == weight.nbytes
    assert weight.equal(original)


@pytest.mark.parametrize("used", [False, True])
def test_copies_of_a_weight(backend: Backend, used: bool) -> None:
    weight = weight_of(4, 16, "float", torch.float32)
    if used:
        bittensor.linear(X, weight)
    for twin in (copy.copy(weight), copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert twin.equal(weight)
        assert torch.equal(bittensor.linear(X, twin), bittensor.linear(X, weight))
    twin = copy.deepcopy(weight)
    for tensor in twin._held.tensors:
        tensor.zero_()
    assert weight.equal(weight_of(4, 16, "float", torch.float32))
    own, others = weight._held.tensors, copy.copy(weight)._held.tensors
    assert [tensor.data_ptr() for tensor in own] == [tensor.data_ptr() for tensor in others]


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
    weight, bias = weight_of(4, 16, "integer", torch.float32), normal(21)
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


def test_repr(layer: QuantizedLinear) -> None:
    expected = "QuantizedLinear(in_features=40, out_features=21, bits=4, group_size=16, zero='integer', scales=float32"
    assert repr(layer).startswith(expected)
    assert "epilogue='relu'" in repr(QuantizedLinear(layer.weight, epilogue="relu"))


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        ((X,), {}, TypeError, "weight: expected a QuantizedWeight, got Tensor"),
        ((weight_of(4, 16, "integer", torch.float32), X), {}, ValueError, r"bias: expected \[21\]"),
        ((weight_of(4, 16, "integer", torch.float32),), {"activation_mode": "fp8"}, ValueError, "activation_mode"),
        ((weight_of(4, 16, "integer", torch.float32),), {"epilogue": "tanh"}, ValueError, "epilogue"),
    ],
)
def test_refusals(arguments: tuple[Any, ...], settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        QuantizedLinear(*arguments, **settings)
