"""`QuantizedConv2d`: its linear form, bit for bit, and torch's convolution with the dequantized weight."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import bittensor
from bittensor import Backend, QuantizeConfig
from bittensor import convolution as composition
from bittensor.nn import QuantizedConv2d

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
    for group, rows in enumerate(columns):
        y = bittensor.linear(rows, layer.linear.weight, layer.linear.bias, layer.linear.activation_mode)
        parts.append(y.chunk(source.groups, dim=2)[group])
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
    y = layer(x)
    if mode == "int8":
        assert torch.equal(y, expected)
    else:
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
    assert torch.equal(layer(x.to(memory_format=torch.channels_last)), y)
    assert torch.equal(layer(x[1]), y[1])
    for values in (1 << 19, 4000, 1):  # composed: all at once, an image at a time, a row at a time
        monkeypatch.setattr(composition, "PATCH_VALUES", values)
        assert torch.equal(layer(x.clone().requires_grad_()), expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert layer(x[:0]).shape == (0, *expected.shape[1:])
    assert layer(x.bfloat16()).dtype is torch.bfloat16


@pytest.mark.parametrize("name", ["strided", "groups", "same dilated"])
def test_gradients(backend: Backend, name: str) -> None:
    source = convolution(SETTINGS[name])
    layer = QuantizedConv2d.from_conv(source, bits=8, group_size=8, activation_mode="float")
    layer.requires_grad_()
    x, other = (normal(3, 8, 9, 11).requires_grad_() for _ in range(2))
    source.weight.data = (
        layer.linear.weight.dequantize().view(12, *source.kernel_size, -1).permute(0, 3, 1, 2).contiguous()
    )
    y, expected = layer(x), source(other)
    torch.testing.assert_close(y, expected)
    dy = normal(*y.shape, seed=3)
    y.backward(dy)
    expected.backward(dy)
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(layer.linear.bias.grad, source.bias.grad)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "PATCH_VALUES", 20_000)
    source = convolution({"padding": 1})
    layer, sizes = QuantizedConv2d.from_conv(source, group_size=8), []
    geometry = composition.ConvolutionGeometry((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), groups=1)

    def linear(patches: torch.Tensor) -> torch.Tensor:
        sizes.append(patches.numel())
        return layer.linear(patches)

    composition.composed_conv2d(linear, normal(5, 40, 50, 8), geometry)
    assert max(sizes) <= 20_000
    assert sum(sizes) == 5 * 40 * 50 * 72
    sizes.clear()
    composition.composed_conv2d(linear, normal(100, 6, 6, 8), geometry)
    assert max(sizes) <= 20_000
    assert len(sizes) == 15, "small images go together"


def test_errors() -> None:
    source = convolution({})
    layer = QuantizedConv2d.from_conv(source, group_size=8)
    weight = layer.linear.weight
    for shape in ((3, 7, 9, 9), (8, 9), (1, 1, 8, 9, 9)):
        with pytest.raises(ValueError, match=r"x: expected \[\.\.\., 8, H, W\] with or without a batch, got float32"):
            layer(normal(*shape))
    with pytest.raises(ValueError, match=r"as large as the kernel of \(3, 3\), got float32 \[1, 8, 2, 9\]"):
        layer(normal(1, 8, 2, 9))
    with pytest.raises(TypeError, match="x: expected float16, bfloat16 or float32"):
        layer(normal(1, 8, 9, 9).double())
    with pytest.raises(TypeError, match=r"x: expected a tensor \[\.\.\., 8, H, W\], got int"):
        layer(3)
    with pytest.raises(TypeError, match="x: expected a tensor of strided layout"):
        layer(normal(1, 8, 9, 9).to_sparse())
    with pytest.raises(ValueError, match="x: expected a tensor on cpu"):
        layer(normal(1, 8, 9, 9).to("meta"))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"in_channels": 9}, r"weight: expected \[out_channels, 81\], got \[12, 72\]"),
        ({"in_channels": 0}, "groups: expected a divisor of in_channels=0"),
        ({"groups": 0}, "groups: expected a divisor of in_channels=8 and out_channels=12, got 0"),
        ({"groups": 8}, "groups: expected a divisor of in_channels=8 and out_channels=12, got 8"),
        ({"kernel_size": 0}, "kernel_size: expected an int of at least 1, or two, got 0"),
        ({"stride": (1, 2, 3)}, "stride: expected an int of at least 1, or two"),
        ({"padding": -1}, "padding: expected an int of at least 0"),
        ({"padding": "full"}, "padding: expected one of"),
        ({"padding": "same", "stride": 2}, 'padding: "same" goes with stride 1 only'),
        ({"padding_mode": "wrap"}, "padding_mode: expected one of"),
        ({"bias": torch.zeros(11)}, r"bias: expected \[12\], one value for each output, got float32 \[11\]"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            QuantizedConv2d(weight, **{"in_channels": 8, "kernel_size": 3} | settings)
    with pytest.raises(TypeError, match="either a config or its settings"):
        QuantizedConv2d.from_conv(source, QuantizeConfig(), bits=4)


def test_an_epilogue_that_is_unknown() -> None:
    layer, x = QuantizedConv2d.from_conv(convolution({}), group_size=8), normal(1, 8, 9, 9)
    layer.linear.epilogue = "tanh"
    with pytest.raises(ValueError, match=r"epilogue: expected one of \(None, 'relu', 'gelu', 'silu'\), got 'tanh'"):
        layer(x)
    backend = bittensor.get_backend("cpp")
    prepared = layer.linear.weight.prepared_for(backend)
    geometry = composition.ConvolutionGeometry((3, 3), (1, 1), (0, 0, 0, 0), (1, 1), groups=1)
    with pytest.raises(bittensor.UnsupportedOperationError, match=r"epilogue: expected one of .*, got 'tanh'"):
        backend.fused().conv2d(x.permute(0, 2, 3, 1), prepared, None, geometry, "int8", "tanh")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(9, 9, 8)}, r"x: expected \[B, H, W, C\]"),
        ({"x": torch.zeros(1, 9, 9, 8, dtype=torch.float64)}, "x: expected float32, float16 or bfloat16"),
        ({"x": torch.zeros(1, 9, 9, 7)}, "x: expected as many channels"),
        ({"x": torch.zeros(1, 2, 9, 8)}, "as large as the kernel"),
        ({"out_channels": 11}, "out_channels"),
        ({"bias": torch.zeros(11)}, "bias"),
        ({"kernel_size": (3,)}, "kernel_size: expected two numbers from 1 on"),
        ({"kernel_size": (3, 4)}, "x: expected as many channels"),
        ({"kernel_size": (9, 9)}, "x: expected as many channels"),
        ({"stride": (0, 1)}, "stride"),
        ({"dilation": (1, 2**31)}, "dilation"),
        ({"dilation": (2**31 - 1, 1)}, "as large as the kernel"),
        ({"padding": (0, 0)}, "padding: expected four numbers"),
        ({"padding": (0, -1, 0, 0)}, "padding"),
        ({"padding": (2**31 - 1,) * 4}, "more than 2.63 values"),
        ({"groups": 0}, "groups"),
        ({"groups": 3}, "groups"),
        ({"groups": 2}, "x: expected as many channels"),
        ({"activation": 4}, "activation: unknown"),
    ],
)
def test_the_operator_refuses(changes: dict[str, Any], message: str) -> None:
    layer = QuantizedConv2d.from_conv(convolution({}), group_size=8)
    (prepared,) = layer.linear.weight.prepared_for(bittensor.get_backend("cpp")).tensors
    arguments: dict[str, Any] = {"x": torch.zeros(1, 9, 9, 8), "prepared": prepared, "out_channels": 12, "bias": None}
    arguments |= {"kernel_size": (3, 3), "stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1)}
    assert torch.ops.bittensor_cpp.conv2d.default(**arguments).shape == (1, 7, 7, 12)
    with pytest.raises((RuntimeError, ValueError), match=message):
        torch.ops.bittensor_cpp.conv2d.default(**arguments | changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["int8", "float"])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_images_without_rows_or_columns(groups: int, mode: str, dtype: torch.dtype) -> None:
    """Of what lies around them, the result is the bias."""
    source = convolution({"kernel_size": 1, "padding": 1, "groups": groups, "out_channels": 8})
    layer = QuantizedConv2d.from_conv(source, group_size=None, activation_mode=mode)
    for size, expected in (((5, 0), (7, 2)), ((0, 5), (2, 7)), ((0, 0), (2, 2))):
        y = layer(torch.ones(2, 8, *size, dtype=dtype))
        assert y.shape == (2, 8, *expected)
        assert torch.equal(y, layer.linear.bias.to(dtype)[:, None, None].expand_as(y))


def test_far_strides_and_dilations() -> None:
    """The result is small; what lies between its patches may not take memory."""
    far = 2**30
    source = convolution({"groups": 8, "out_channels": 8, "padding": far, "stride": far, "dilation": far})
    layer, x = QuantizedConv2d.from_conv(source, group_size=None, activation_mode="float"), normal(1, 8, 3, 4)
    center = layer.linear.weight.dequantize()[:, 4] * x[0, :, 0, 0] + layer.linear.bias
    assert torch.allclose(layer(x)[0, :, 0, 0], center, atol=1e-6)


def test_saving_and_copying(backend: Backend) -> None:
    layer, x = QuantizedConv2d.from_conv(convolution(SETTINGS["groups"]), group_size=8), normal(2, 8, 9, 9)
    other = QuantizedConv2d.from_conv(convolution({**SETTINGS["groups"], "bias": True}), group_size=8)
    with torch.no_grad():
        other.linear.bias.zero_()
    assert other.load_state_dict(layer.state_dict()) == ([], [])
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert layer.nbytes == layer.linear.weight.nbytes
    assert "groups=2" in repr(layer)


def test_compiled(backend: Backend) -> None:
    torch._dynamo.reset()
    layer, x = QuantizedConv2d.from_conv(convolution(SETTINGS["strided"]), group_size=8), normal(2, 8, 9, 9)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), layer(x))
    torch._dynamo.reset()


@pytest.mark.parametrize("variant", bittensor.get_backend("cpp").capabilities.variants)
@pytest.mark.parametrize(("channels", "groups"), [(1, 40), (4, 16)])
def test_narrow_groups_of_every_magnitude(variant: str, channels: int, groups: int) -> None:
    """Quantizing lane by lane has the rules of section 4 at its edges: zero, the smallest scale, halves, large x."""
    backend = bittensor.get_backend(f"cpp:{variant}")
    exponents = (-149, -127, -126, -102, -101, -100, -99, 0, 60, 100)
    x = normal(len(exponents) + 1, 6, 7, groups * channels).clamp(-1.9, 1.9).double()
    x[:-1] *= torch.tensor([2.0**exponent for exponent in exponents], dtype=torch.double).view(-1, 1, 1, 1)
    x[exponents.index(-101)].view(-1)[::3] = 2.0**-100
    x[-1] = (127 * x[-1]).round() / 2
    x[-1].view(-1)[::5] = 127.0
    geometry = composition.ConvolutionGeometry((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), groups)
    for bits, zero in ((2, "symmetric"), (4, "integer"), (8, "float")):
        prepared = backend.prepare(bittensor.quantize(normal(groups * channels, 9 * channels), bits, 8, zero))

        def linear(rows: torch.Tensor, prepared: Any = prepared) -> torch.Tensor:
            return backend.linear(rows, prepared, None, "int8", None)

        result = backend.fused().conv2d(x.float(), prepared, None, geometry, "int8", None)
        assert torch.equal(result, composition.composed_conv2d(linear, x.float(), geometry)), (bits, zero)
