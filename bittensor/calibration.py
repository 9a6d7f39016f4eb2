"""Quantization of the linear layers of a model with data: what they are given decides how they are rounded."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .awq_scaling import scale_channels
from .gptq_rounding import round_with_moments
from .linear_classes import computes_linear, linear_of
from .model_quantization import (
    LayerReport,
    QuantizeReport,
    check_model,
    is_linear,
    obstacle,
    parts_of_convolutions,
    shared_parameters,
)
from .module_replacement import ModulePlaces
from .nn import QuantizedLinear, ScaledInputLinear
from .progress import with_progress
from .quantize_config import QuantizeConfig
from .stacked_experts import unstacked_experts
from .weight_checks import check_choice

CALIBRATION_METHODS = ("gptq", "awq-scale")

_NOT_REACHED = "the batches do not reach it"


def calibrate(
    model: torch.nn.Module,
    batches: Sequence[Any],
    config: QuantizeConfig | None = None,
    filter_fn: Callable[[str, Any], bool] | None = None,
    *,
    method: str = "gptq",
    damping: float = 0.01,
    act_order: bool = False,
    progress: bool = True,
) -> QuantizeReport:
    """Quantize the linear layers of a model as `bittensor.quantize_` does, but for the inputs that they get.

    `bittensor.quantize_` with batches is this, with `method` and `act_order` as they are by default.

    Layer by layer, in the order in which the model calls them: the batches run through the model, whose earlier layers
    are quantized already; of the inputs x only the mean of ``x^T x``, float64 ``[K, K]``, is kept, summed from products
    in float32. That is one run of all batches for each layer (one together for layers that are given the very same
    tensor, as query, key and value projections are), and memory for one such matrix.

    Methods:
        "gptq": each column is rounded so that it makes up for the error of those before it
            (`bittensor.gptq_rounding`). The layers are as fast as those of `quantize_`.
        "awq-scale": the columns are scaled before they are quantized, and the input is divided by the scales, in a
            `bittensor.nn.ScaledInputLinear`: one more multiplication of the input, which is right in any model: scales
            are not folded into the layer before. Layers that no scales help become plain ones.

    On the calibration data, the error of a layer's output, given its input, is never above that of `quantize_`. It is
    that of rounded weights: what the mode "int8" rounds of the input is not looked at.

    Args:
        model: changed in place. It runs in eval mode.
        batches: what the model is called with: a mapping of keyword arguments, a tuple or list of arguments, or one
            argument. They are gone through several times. `bittensor.transformers.random_tokens` makes some without
            data.
        config: as for `quantize_`; ``config.method`` says how the grid of a group is chosen.
        filter_fn: as for `quantize_`.
        method: "gptq" or "awq-scale".
        damping: of "gptq": this part of the mean of the diagonal is added to the diagonal of ``x^T x``.
        act_order: of "gptq": round columns with large inputs first. Groups stay runs of columns.
        progress: show a progress bar on stderr if that is a terminal.

    Warns:
        UserWarning: layers that could not be quantized, also those that the batches never reach, or with no rows, that
            get inputs that are not finite or need a larger `damping`.

    Raises:
        TypeError, ValueError: `model` is no module, an unknown method, no batches, or a damping that is not positive.

    >>> import torch, bittensor
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    >>> report = bittensor.calibrate(model, [torch.randn(100, 64)], bittensor.QuantizeConfig(bits=4, group_size=32))
    >>> report.quantized
    ('0', '2')
    """
    check_model(model)
    check_choice("method", method, CALIBRATION_METHODS)
    if not isinstance(batches, Sequence) or isinstance(batches, (str, bytes)):
        raise TypeError(
            f"batches: expected a sequence, which is gone through several times, got {type(batches).__name__}"
        )
    if not batches:
        raise ValueError("batches: expected at least one, got none")
    if not 0 < damping < float("inf"):
        raise ValueError(f"damping: expected a positive number, got {damping}")
    rounding = _Rounding(QuantizeConfig() if config is None else config, method, damping, act_order)
    parts = parts_of_convolutions(model)
    reports: dict[str, LayerReport] = {}
    with unstacked_experts(model) as experts:
        names = [
            name
            for name, module in model.named_modules()
            if name in experts.whole or (is_linear(module) and module not in parts)
        ]
        shared = shared_parameters(model)
        for name in names:
            if (report := _left_alone(model, name, filter_fn, shared, experts.whole)) is not None:
                reports[name] = report
        experts.changing += [name for name in names if name not in reports]
    places = ModulePlaces(model)
    with torch.no_grad(), _evaluating(model):
        groups = _layers_by_input(model, [name for name in names if name not in reports], batches)
        by_first = {group[0]: group for group in groups}
        for first in with_progress(list(by_first), "calibrating", wanted=progress):
            inputs = _inputs_of(model, first, batches)
            for name in by_first[first]:
                reports[name] = _calibrate_layer(model, places, name, inputs, rounding)
    for name in names:
        reports.setdefault(name, LayerReport(name, "failed", _NOT_REACHED))
    result = QuantizeReport(tuple(reports[name] for name in names))
    if not names:
        warnings.warn(f"calibrate: {type(model).__name__} has no torch.nn.Linear", stacklevel=2)
    if failed := result.failed:
        listed = "; ".join(f"{name or 'the model itself'}: {reason}" for name, reason in failed.items())
        warnings.warn(f"calibrate: {len(failed)} of {len(names)} layers not quantized: {listed}", stacklevel=2)
    return result


@dataclass(frozen=True)
class _Rounding:
    config: QuantizeConfig
    method: str
    damping: float
    act_order: bool

    def layer(self, layer: torch.nn.Linear, inputs: _Inputs) -> QuantizedLinear | ScaledInputLinear:
        """What takes the place of `layer`."""
        config, factors = self.config, None
        if not bool(inputs.products.isfinite().all()):
            raise ValueError("its inputs are not finite")
        if self.method == "gptq":
            weight = round_with_moments(
                layer.weight, inputs.moments, config, damping=self.damping, act_order=self.act_order
            )
        else:
            weight, scales = scale_channels(layer.weight, inputs.moments, inputs.mean_magnitudes, config)
            factors = None if scales is None else scales.reciprocal()
        bias = None if layer.bias is None else layer.bias.detach().clone()
        made = QuantizedLinear(weight, bias, activation_mode=config.activation_mode)
        return made if factors is None else ScaledInputLinear(made, factors)


class _Inputs:
    """Sums over the rows of all inputs x of a layer: of ``x^T x`` float64 ``[K, K]``, and of ``abs(x)``."""

    def __init__(self, columns: int) -> None:
        self.products = torch.zeros(columns, columns, dtype=torch.float64, device="cpu")
        self.magnitudes = torch.zeros(columns, dtype=torch.float64, device="cpu")
        self.rows = 0

    def add(self, x: torch.Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).to(torch.float32)
        self.products += rows.t() @ rows
        self.magnitudes += rows.abs().sum(dim=0)
        self.rows += len(rows)

    @property
    def moments(self) -> torch.Tensor:
        return self.products / self.rows

    @property
    def mean_magnitudes(self) -> torch.Tensor:
        return self.magnitudes / self.rows


def _left_alone(
    model: torch.nn.Module,
    name: str,
    filter_fn: Callable[[str, Any], bool] | None,
    shared: dict[int, list[str]],
    whole: Mapping[str, str],
) -> LayerReport | None:
    """The report of a layer that is not to be quantized; None if it is."""
    layer = model.get_submodule(name)
    if filter_fn is not None and not filter_fn(name, layer):
        return LayerReport(name, "excluded")
    if name in whole:
        return LayerReport(name, "failed", whole[name])
    if not (isinstance(layer, torch.nn.Linear) or computes_linear(layer)):
        return LayerReport(name, "failed", "it is quantized already")
    reason = obstacle(model, name, layer, shared)
    return None if reason is None else LayerReport(name, "failed", reason)


def _calibrate_layer(
    model: torch.nn.Module, places: ModulePlaces, name: str, inputs: _Inputs, rounding: _Rounding
) -> LayerReport:
    layer: Any = model.get_submodule(name)
    if inputs.rows == 0:
        return LayerReport(name, "failed", _NOT_REACHED)
    try:
        made = rounding.layer(linear_of(layer), inputs)
    except (TypeError, ValueError) as error:
        return LayerReport(name, "failed", str(error))
    weight = made.weight if isinstance(made, QuantizedLinear) else made.linear.weight
    places.replace(layer, made)
    before = layer.weight.numel() * layer.weight.itemsize
    return LayerReport(name, "quantized", bytes_before=before, bytes_after=weight.nbytes)


def _layers_by_input(model: torch.nn.Module, names: Sequence[str], batches: Sequence[Any]) -> list[list[str]]:
    """Layers in the order of their first call; those always called in a row, with the same tensor, together."""
    calls: list[list[str]] = []
    last: list[torch.Tensor | None] = [None]

    def seen(name: str, x: torch.Tensor) -> None:
        if x is last[0]:
            calls[-1].append(name)
        else:
            calls.append([name])
        last[0] = x

    with _watching(model, names, seen):
        for batch in batches:
            last[0] = None
            _run(model, batch)
    together: dict[str, set[tuple[str, ...]]] = {}
    for call in calls:
        for name in call:
            together.setdefault(name, set()).add(tuple(call))
    groups: list[list[str]] = []
    for name, found in together.items():
        always = next(iter(found)) if len(found) == 1 else (name,)
        if all(together[other] == found for other in always) and len(set(always)) == len(always):
            if always[0] == name:
                groups.append(list(always))
        else:
            groups.append([name])
    return groups


def _inputs_of(model: torch.nn.Module, name: str, batches: Sequence[Any]) -> _Inputs:
    """What a layer is given in all batches."""
    inputs = _Inputs(linear_of(model.get_submodule(name)).in_features)
    with _watching(model, [name], lambda _, x: inputs.add(x)):
        for batch in batches:
            _run(model, batch)
    return inputs


@contextmanager
def _watching(
    model: torch.nn.Module, names: Sequence[str], seen: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """Call ``seen(name, input)`` before each call of these layers."""

    def hook(name: str) -> Callable[[torch.nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda _, args, kwargs: seen(name, args[0] if args else next(iter(kwargs.values())))

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name), with_kwargs=True) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode; afterwards every module that was in training mode is so again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _run(model: torch.nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, (tuple, list)):
        model(*batch)
    else:
        model(batch)
