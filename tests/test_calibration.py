"""Quantization with data: rounding against brute force, and the layers of a model one after the other."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch

import bittensor
from bittensor import QuantizeConfig
from bittensor.awq_scaling import scale_channels
from bittensor.gptq_rounding import output_error, round_with_moments


def inputs(columns: int, rows: int = 200, seed: int = 0) -> torch.Tensor:
    """Inputs whose channels depend on each other and differ in size, as those of a model do."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(rows, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return mixed * torch.rand(columns, generator=generator).square() + torch.randn(columns, generator=generator)


def moments(x: torch.Tensor) -> torch.Tensor:
    return x.double().t() @ x.double() / len(x)


def error(weight: torch.Tensor, quantized: bittensor.QuantizedWeight, x: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each output, from the outputs."""
    return ((quantized.dequantize() - weight).double() @ x.double().t()).square().mean(dim=1)


def test_output_error_is_that_of_the_outputs() -> None:
    x, difference = inputs(24), torch.randn(5, 24)
    expected = (difference.double() @ x.double().t()).square().mean(dim=1)
    assert torch.allclose(output_error(difference, moments(x)), expected)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("zero", ["symmetric", "integer", "float"])
@pytest.mark.parametrize(("columns", "group_size"), [(48, 16), (56, None), (300, 136), (64, 24)])
@pytest.mark.parametrize("bits", [2, 4])
def test_rounding_is_never_worse_than_to_nearest_and_mostly_better(
    bits: int, columns: int, group_size: int | None, zero: str, act_order: bool
) -> None:
    torch.manual_seed(1)
    weight, x = torch.randn(12, columns), inputs(columns, rows=2 * columns)
    config = QuantizeConfig(bits, group_size, zero, scale_dtype=torch.float16)
    quantized = round_with_moments(weight, moments(x), config, act_order=act_order)
    ours, plain = error(weight, quantized, x), error(weight, config.quantize(weight), x)
    assert quantized.form == config.quantize(weight).form
    assert (ours <= plain * (1 + 1e-9)).all()
    assert ours.sum() < 0.9 * plain.sum()


def test_rounding_with_uncorrelated_inputs_is_to_nearest() -> None:
    weight, config = torch.randn(6, 64), QuantizeConfig(4, 16, "float")
    quantized = round_with_moments(weight, torch.eye(64, dtype=torch.float64), config)
    assert quantized.equal(config.quantize(weight))


def test_rounding_comes_close_to_the_best_of_all_codes() -> None:
    """Two bits and six columns: 4096 codes for a row can all be tried, on the same grid."""
    torch.manual_seed(3)
    weight, x = torch.randn(8, 6), inputs(6, rows=50, seed=2)
    config = QuantizeConfig(2, None)
    quantized = round_with_moments(weight, moments(x), config, act_order=True)
    plain = config.quantize(weight)
    every = torch.tensor(list(itertools.product(range(4), repeat=6))).float()
    best = torch.stack(
        [
            output_error(scale * (every - 2) - row, moments(x)).min()
            for scale, row in zip(plain.scales, weight, strict=True)
        ]
    )
    ours, nearest = error(weight, quantized, x), error(weight, plain, x)
    assert torch.equal(quantized.scales, plain.scales)
    assert (best <= ours + 1e-9).all()
    assert (ours - best).sum() < 0.5 * (nearest - best).sum()


def test_channels_without_input_do_no_harm() -> None:
    x = inputs(32)
    x[:, 5] = x[:, 17] = 0
    weight = torch.randn(4, 32)
    for act_order in (False, True):
        quantized = round_with_moments(weight, moments(x), QuantizeConfig(4, 16), act_order=act_order)
        assert quantized.dequantize().isfinite().all()
    _, scales = scale_channels(weight, moments(x), x.double().abs().mean(0), QuantizeConfig(2, 16))
    assert scales is None or scales.isfinite().all()


def test_scaled_channels() -> None:
    torch.manual_seed(2)
    weight, x = torch.randn(16, 64), torch.randn(300, 64) * torch.logspace(-2, 1, 64)[torch.randperm(64)]
    config = QuantizeConfig(4, 32)
    quantized, scales = scale_channels(weight, moments(x), x.double().abs().mean(0), config)
    assert scales is not None
    layer = bittensor.nn.ScaledInputLinear(
        bittensor.QuantizedLinear(quantized, activation_mode="float"), scales.reciprocal()
    )
    expected = (x / scales) @ quantized.dequantize().t()
    assert torch.allclose(layer(x), expected, atol=1e-4)
    exact = x @ weight.t()
    plain = x @ config.quantize(weight).dequantize().t()
    assert (layer(x) - exact).square().sum() < 0.7 * (plain - exact).square().sum()


def test_no_scales_where_they_do_not_help() -> None:
    weight, same = torch.randn(4, 32), torch.ones(32, dtype=torch.float64)
    _, scales = scale_channels(weight, torch.eye(32, dtype=torch.float64), same, QuantizeConfig(4, 16))
    assert scales is None


@pytest.mark.parametrize("factors", [torch.ones(3), torch.tensor([float("nan")] * 64)])
def test_factors_that_are_refused(factors: torch.Tensor) -> None:
    linear = bittensor.QuantizedLinear.from_linear(torch.nn.Linear(64, 8), group_size=32)
    with pytest.raises(ValueError, match=r"factors: expected finite floats \[64\]"):
        bittensor.nn.ScaledInputLinear(linear, factors)


class Attention(torch.nn.Module):
    """Layers on the same input, one that is called twice, one that is never called, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)
        self.query, self.key = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64, bias=False)
        self.unused = torch.nn.Linear(64, 64)
        self.output = torch.nn.Linear(64, 64)

    def forward(self, x: torch.Tensor, *, twice: bool = True) -> torch.Tensor:
        mixed = self.dropout(self.query(x).sigmoid() * self.key(x))
        mixed = self.output(mixed)
        return torch.as_tensor(self.output(mixed.relu()) if twice else mixed)


@pytest.fixture
def model() -> Attention:
    torch.manual_seed(0)
    return Attention()


@pytest.mark.parametrize("method", ["gptq", "awq-scale"])
@torch.no_grad()
def test_a_calibrated_model_is_closer(method: str, model: Attention) -> None:
    batches = [inputs(64, seed=1), inputs(64, seed=2)]
    x = batches[0]
    config = QuantizeConfig(2, 32, activation_mode="float")
    model.eval()
    expected = model(x)
    other = Attention()
    other.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match="1 of 4 layers not quantized: unused: the batches do not reach it"):
        report = bittensor.calibrate(model, batches, config, method=method)
    assert report.quantized == ("query", "key", "output")
    bittensor.quantize_(other.eval(), config)
    calibrated, plain = (float((each(x) - expected).square().mean()) for each in (model, other))
    assert calibrated < plain


def test_layers_get_the_inputs_of_the_quantized_layers_before_them(model: Attention) -> None:
    """The moments that a later layer is rounded with are those of a model whose earlier layers are quantized."""
    x = inputs(64)
    config = QuantizeConfig(2, 32, activation_mode="float")
    whole = Attention()
    whole.load_state_dict(model.state_dict())
    layer = torch.nn.Linear(64, 64)
    layer.load_state_dict(model.output.state_dict())
    with pytest.warns(UserWarning, match="unused"):
        bittensor.calibrate(whole, [(x,)], config)
    hidden = (whole.query(x).sigmoid() * whole.key(x)).detach()
    float_second = layer(hidden).relu().detach()  # the layer was a float when its own inputs were gathered
    expected = round_with_moments(layer.weight, moments(torch.cat([hidden, float_second])), config)
    assert (whole.output.weight.codes() != expected.codes()).float().mean() < 0.01, "but for rounding of the moments"


@pytest.mark.parametrize("batch", [{"x": inputs(64), "twice": False}, (inputs(64),), [inputs(64)], inputs(64)])
def test_batches_of_every_kind(batch: Any, model: Attention) -> None:
    with pytest.warns(UserWarning, match="unused"):
        report = bittensor.calibrate(model, [batch], QuantizeConfig(4, 32))
    assert len(report.quantized) == 3
    assert model.training, "the mode is as it was"
    assert model.dropout.training


def test_quantize_takes_batches(model: Attention) -> None:
    other = Attention()
    other.load_state_dict(model.state_dict())
    config = QuantizeConfig(4, 32, method="hqq")
    arguments = {"filter_fn": lambda name, _: name != "unused", "damping": 0.1, "progress": False}
    expected = bittensor.calibrate(other, [inputs(64)], config, **arguments)
    assert bittensor.quantize_(model, config, batches=[inputs(64)], **arguments) == expected
    for name in ("query", "key", "output"):
        assert model.get_submodule(name).weight.equal(other.get_submodule(name).weight), name


def test_only_linear_layers_are_quantized_with_batches(model: Attention) -> None:
    with pytest.raises(ValueError, match="kinds: with batches expected"):
        bittensor.quantize_(model, batches=[inputs(64)], kinds=(torch.nn.Linear, torch.nn.Embedding))
    with pytest.raises(ValueError, match="batches: expected at least one, got none"):
        bittensor.quantize_(model, batches=[])
    assert type(model.query) is torch.nn.Linear


def test_filter_and_obstacles(model: Attention) -> None:
    model.key.weight = model.query.weight
    with pytest.warns(UserWarning, match="shared with"):
        report = bittensor.calibrate(
            model, [inputs(64)], QuantizeConfig(4, 32), filter_fn=lambda name, _: name != "output"
        )
    assert report.excluded == ("output",)
    assert set(report.failed) == {"query", "key", "unused"}
    assert type(model.output) is torch.nn.Linear


def test_the_filter_is_asked_before_a_layer_is_quantized_already(model: Attention) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bittensor.quantize_(model, QuantizeConfig(4, 32), lambda name, _: name == "query")
        report = bittensor.calibrate(model, [inputs(64)], QuantizeConfig(8, 32), lambda name, _: name == "output")
    assert report.excluded == ("query", "key", "unused")
    assert report.quantized == ("output",)


def test_a_forward_set_on_a_layer_is_kept(model: Attention) -> None:
    layer, forward = model.output, model.output.forward
    layer.forward = lambda x: 100 * forward(x)
    with pytest.warns(UserWarning, match="output: it has a forward of its own, set on the layer, which would be lost"):
        report = bittensor.calibrate(model, [inputs(64)], QuantizeConfig(4, 32))
    assert report.quantized == ("query", "key")
    assert model.output is layer


def test_inputs_that_are_not_finite(model: Attention) -> None:
    x = inputs(64)
    x[3, 3] = float("inf")
    with pytest.warns(UserWarning, match="query: its inputs are not finite"):
        bittensor.calibrate(model, [x], QuantizeConfig(4, 32))
    assert type(model.query) is torch.nn.Linear


class Routed(torch.nn.Module):
    """Two experts, of which one gets no rows."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle, self.shared = (torch.nn.Linear(64, 64) for _ in range(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rare = x[:, 0] > 1e9
        return self.shared(self.used(x[~rare])), self.idle(x[rare])


@pytest.mark.parametrize("method", ["gptq", "awq-scale"])
def test_a_layer_that_gets_no_rows_is_not_reached(method: str) -> None:
    network = Routed()
    idle = network.idle
    with pytest.warns(UserWarning, match="1 of 3 layers not quantized: idle: the batches do not reach it"):
        report = bittensor.calibrate(network, [inputs(64), inputs(64)[:0]], QuantizeConfig(4, 32), method=method)
    assert report.quantized == ("used", "shared")
    assert network.idle is idle


def test_too_little_damping_is_reported(model: Attention) -> None:
    """Three rows have moments of rank 3, which are not positive definite but for the damping."""
    x = inputs(64, rows=3)
    reason = "query: damping: expected enough to make the moments .*, got 1e-18, .*; give a larger one"
    with pytest.warns(UserWarning, match=reason):
        report = bittensor.calibrate(model, [x], QuantizeConfig(4, 32), damping=1e-18)
    assert set(report.failed) >= {"query", "key"}
    with pytest.warns(UserWarning, match="1 of 4 layers not quantized: unused"):
        bittensor.calibrate(model, [x], QuantizeConfig(4, 32), damping=0.01)


def test_scales_that_are_out_of_range_are_not_tried() -> None:
    """A channel of tiny inputs: with the larger powers, float16 cannot hold the scaled weights of the others."""
    torch.manual_seed(2)
    layer, x = torch.nn.Linear(64, 16), torch.randn(300, 64) * torch.logspace(-2, 1, 64)[torch.randperm(64)]
    x[:, 7] = 1e-30
    network, config = torch.nn.Sequential(layer), QuantizeConfig(4, 32, scale_dtype=torch.float16)
    plain, weight = error(layer.weight, config.quantize(layer.weight), x).sum(), layer.weight
    report = bittensor.calibrate(network, [x], config, method="awq-scale")
    assert report.quantized == ("0",)
    assert isinstance(network[0], bittensor.nn.ScaledInputLinear), "smaller powers are tried"
    scaled = network[0].linear.weight.dequantize() * network[0].factors
    assert ((scaled - weight).double() @ x.double().t()).square().mean(dim=1).sum() < plain


@pytest.mark.parametrize("whole", [False, True])
def test_packed_convolutions_are_no_linear_layers(whole: bool) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(8, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 8))
    bittensor.quantize_(network, QuantizeConfig(group_size=8), kinds=(torch.nn.Conv2d,))
    convolution, x = network[0], torch.randn(2, 8, 4, 4)
    if whole:
        with pytest.warns(UserWarning, match="QuantizedConv2d has no torch.nn.Linear"):
            assert bittensor.calibrate(convolution, [x]).layers == ()
        with pytest.warns(UserWarning, match="QuantizedConv2d has no torch.nn.Linear"):
            assert bittensor.quantize_(convolution).layers == ()
        return
    report = bittensor.calibrate(network, [x], QuantizeConfig(group_size=8))
    assert [layer.name for layer in report.layers] == ["2"]
    assert network[0] is convolution


@pytest.mark.parametrize(
    ("batches", "settings", "error", "reason"),
    [
        ([], {}, ValueError, "batches: expected at least one, got none"),
        (iter([1]), {}, TypeError, "batches: expected a sequence"),
        ([torch.ones(1, 64)], {"method": "magic"}, ValueError, "method: expected one of"),
        ([torch.ones(1, 64)], {"damping": 0.0}, ValueError, "damping: expected a positive number, got 0"),
    ],
)
def test_arguments_that_are_refused(
    batches: Any, settings: dict[str, Any], error: type[Exception], reason: str, model: Attention
) -> None:
    with pytest.raises(error, match=reason):
        bittensor.calibrate(model, batches, **settings)
    assert type(model.query) is torch.nn.Linear
