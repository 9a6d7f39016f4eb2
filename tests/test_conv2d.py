"""`QuantizedConv2d`: its linear form, bit for bit, and torch's convolution with the dequantized weight."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import bittensor
from bittensor import Backend, QuantizeConfig
from bittensor.nn import QuantizedConv2d, quantized_conv2d

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"stride": (2, 3), "padding": (1, 2)},
    "same": {"padding": "same", "kernel_size": (3, 4)},
    "valid": {"padding": "valid", "bias": False},
    "dilated": {"dilation": (2, 1), "padding": 2, "kernel_size": (2, 3)},
    "same dilated": {"padding": "same", "dilation": (1, 3), "kernel_size": (4, 2), "padding_mode": "reflect"},
    "groups": {"groups": 2, "padding": 1, "stride": 2},
    "depthwise": {"groups": 8, "out_channels": 16, "padding": 1, "padding_mode": "circular"},
    "replicated": {"padding": (0, 1), "padding_mode": "replicate"},
    "one by one": {"kernel_size": 1, "bias": False},
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def convolution(settings: dict[str, Any]) -> torch.nn.Conv2d:
    torch.manual_seed(0)
    return torch.nn.Conv2d(**{"in_channels": 8, "out_channels": 12, "kernel_size": 3} | settings)


def padded(source: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """By torch's own numbers."""
    mode = "constant" if source.padding_mode == "zeros" else source.padding_mode
    return F.pad(x, source._reversed_padding_repeated_twice, mode)


def linear_form(source: torch.nn.Conv2d, layer: QuantizedConv2d, x: torch.Tensor) -> torch.Tensor:
    """torch's unfold, its columns in the order of the layer, and `bittensor.linear`."""
    x, (kh, kw) = padded(source, x), source.kernel_size
    size = zip(x.shape[2:], source.kernel_size, source.dilation, source.stride, strict=True)
    height, width = ((full - dilation * (kernel - 1) - 1) // stride + 1 for full, kernel, dilation, stride in size)
    columns = F.unfold(x, source.kernel_size, source.dilation, 0, source.stride)
    columns = columns.view(len(x), source.groups, -1, kh * kw, height * width).permute(1, 0, 4, 3, 2).flatten(3)
    parts = []
    for linear, rows in zip(layer.linears, columns, strict=True):
        parts.append(bittensor.linear(rows, linear.weight, linear.bias, linear.activation_mode))
    return torch.cat(parts, dim=2).mT.reshape(len(x), -1, height, width)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")  # of torch, about the speed of its own
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("mode", ["int8", "float"])
def test_it_is_its_linear_form(backend: Backend, name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = convolution(SETTINGS[name])
    config = QuantizeConfig(8, group_size=8, zero="integer", activation_mode=mode)
    layer, x = QuantizedConv2d.from_conv(source, config), normal(3, 8, 9, 11)
    expected = linear_form(source, layer, x)
    assert torch.allclose(expected, source(x), atol=0.1)
    for values in (1 << 19, 4000, 1):  # all at once, an image at a time, a row at a time
        monkeypatch.setattr(quantized_conv2d, "PATCH_VALUES", values)
        y = layer(x)
        assert torch.equal(y, expected)
        assert torch.equal(layer(x.to(memory_format=torch.channels_last)), expected)
        assert torch.equal(layer(x[1]), expected[1])
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert layer(x[:0]).shape == (0, *expected.shape[1:])
    assert layer(x.bfloat16()).dtype is torch.bfloat16


@pytest.mark.parametrize("name", ["strided", "groups", "same dilated"])
def test_gradients(backend: Backend, name: str) -> None:
    source = convolution(SETTINGS[name])
    layer = QuantizedConv2d.from_conv(source, bits=8, group_size=8, activation_mode="float")
    for linear in layer.linears:
        linear.requires_grad_()
    x, other = (normal(3, 8, 9, 11).requires_grad_() for _ in range(2))
    weight = torch.cat([linear.weight.dequantize() for linear in layer.linears])
    source.weight.data = weight.view(12, *source.kernel_size, -1).permute(0, 3, 1, 2).contiguous()
    y, expected = layer(x), source(other)
    torch.testing.assert_close(y, expected)
    dy = normal(*y.shape, seed=3)
    y.backward(dy)
    expected.backward(dy)
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(torch.cat([linear.bias.grad for linear in layer.linears]), source.bias.grad)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized_conv2d, "PATCH_VALUES", 20_000)
    source = convolution({"padding": 1})
    layer, sizes = QuantizedConv2d.from_conv(source, group_size=8), []
    layer.linears[0].register_forward_pre_hook(lambda _, arguments: sizes.append(arguments[0].numel()))
    layer(normal(5, 8, 40, 50))
    assert max(sizes) <= 20_000
    assert sum(sizes) == 5 * 40 * 50 * 72
    sizes.clear()
    layer(normal(100, 8, 6, 6))
    assert max(sizes) <= 20_000
    assert len(sizes) == 15, "small images go together"


def test_errors() -> None:
    source = convolution({})
    layer = QuantizedConv2d.from_conv(source, group_size=8)
    (weight,) = (linear.weight for linear in layer.linears)
    for shape in ((3, 7, 9, 9), (8, 9), (1, 1, 8, 9, 9)):
        with pytest.raises(ValueError, match=r"x: expected \[\.\.\., 8, H, W\] with or without a batch, got float32"):
            layer(normal(*shape))
    with pytest.raises(ValueError, match=r"as large as the kernel of \(3, 3\), got float32 \[1, 8, 2, 9\]"):
        layer(normal(1, 8, 2, 9))
    with pytest.raises(TypeError, match="x: expected float16, bfloat16 or float32"):
        layer(normal(1, 8, 9, 9).double())
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"in_channels": 9}, r"weights: expected \[out_channels / groups, 81\]"),
        ({"in_channels": 0}, "weights: expected one for each group"),
        ({"kernel_size": 0}, "kernel_size: expected an int of at least 1, or two, got 0"),
        ({"stride": (1, 2, 3)}, "stride: expected an int of at least 1, or two"),
        ({"padding": -1}, "padding: expected an int of at least 0"),
        ({"padding": "full"}, "padding: expected one of"),
        ({"padding": "same", "stride": 2}, 'padding: "same" goes with stride 1 only'),
        ({"padding_mode": "wrap"}, "padding_mode: expected one of"),
        ({"bias": torch.zeros(11)}, r"bias: expected \[12\], got float32 \[11\]"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            QuantizedConv2d([weight], **{"in_channels": 8, "kernel_size": 3} | settings)
    with pytest.raises(ValueError, match="weights: expected one for each group"):
        QuantizedConv2d([], in_channels=8, kernel_size=3)
    with pytest.raises(TypeError, match="either a config or its settings"):
        QuantizedConv2d.from_conv(source, QuantizeConfig(), bits=4)


def test_saving_and_copying(backend: Backend) -> None:
    layer, x = QuantizedConv2d.from_conv(convolution(SETTINGS["groups"]), group_size=8), normal(2, 8, 9, 9)
    other = QuantizedConv2d.from_conv(convolution({**SETTINGS["groups"], "bias": True}), group_size=8)
    with torch.no_grad():
        other.linears[0].bias.zero_()
    assert other.load_state_dict(layer.state_dict()) == ([], [])
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert layer.nbytes == sum(linear.weight.nbytes for linear in layer.linears)
    assert "groups=2" in repr(layer)


def test_compiled(backend: Backend) -> None:
    torch._dynamo.reset()
    layer, x = QuantizedConv2d.from_conv(convolution(SETTINGS["strided"]), group_size=8), normal(2, 8, 9, 9)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), layer(x))
    torch._dynamo.reset()
