"""Arguments of linear that are refused, kinds that are not declared, and weights in another backend's layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from bittensor.backend import Capabilities
from bittensor.prepared_weight import GROUP_SIZE_MULTIPLE

from ..catalogue import check
from ..float_fills import FloatFill
from ..linear_cases import TORCH_DTYPES, LinearCase, Mode, WeightCase
from ..linear_strategies import scope
from ..oracle_linear import FloatDtype, ZeroKind
from ..scripts import holds, run_body
from ..targets import Target

_WEIGHT = WeightCase(4, 3, 9)


@dataclass(frozen=True)
class Rule:
    """Changes to good arguments of `bittensor.linear` that must be refused, with that error and those words."""

    changes: Mapping[str, Any]
    error: type[Exception]
    fragments: tuple[str, ...]


def _zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


_RULES: dict[str, Rule] = {
    "x is a list": Rule({"x": [[1.0]]}, TypeError, ("x:", "float32", "list")),
    "x is None": Rule({"x": None}, TypeError, ("x:", "float32", "NoneType")),
    **{
        f"x is {name}": Rule({"x": _zeros(2, 9, dtype=dtype)}, TypeError, ("x:", "float32", name, "[2, 9]"))
        for name, dtype in {"float64": torch.float64, "uint8": torch.uint8, "int64": torch.int64}.items()
    },
    "x is a scalar": Rule({"x": _zeros()}, ValueError, ("x:",)),
    "x is too narrow": Rule({"x": _zeros(2, 8)}, ValueError, ("x:", "9", "[2, 8]")),
    "x is too wide": Rule({"x": _zeros(2, 16)}, ValueError, ("x:", "9", "[2, 16]")),
    "x is sparse": Rule({"x": torch.eye(9).to_sparse()}, TypeError, ("x:", "sparse")),
    "x is on meta": Rule({"x": torch.zeros(2, 9, device="meta")}, ValueError, ("x:", "cpu", "meta")),
    "weight is a tensor": Rule({"weight": _zeros(3, 9)}, TypeError, ("weight", "QuantizedWeight", "Tensor")),
    "weight is None": Rule({"weight": None}, TypeError, ("weight", "QuantizedWeight", "NoneType")),
    "bias is a list": Rule({"bias": [0.0, 0.0, 0.0]}, TypeError, ("bias", "list")),
    "bias is int32": Rule({"bias": _zeros(3, dtype=torch.int32)}, TypeError, ("bias", "int32")),
    "bias is float64": Rule({"bias": _zeros(3, dtype=torch.float64)}, TypeError, ("bias", "float64")),
    "bias is too short": Rule({"bias": _zeros(2)}, ValueError, ("bias", "[3]", "[2]")),
    "bias is too long": Rule({"bias": _zeros(4)}, ValueError, ("bias", "[3]", "[4]")),
    "bias is a scalar": Rule({"bias": _zeros()}, ValueError, ("bias", "[3]")),
    "bias has two dimensions": Rule({"bias": _zeros(1, 3)}, ValueError, ("bias", "[3]", "[1, 3]")),
    "bias is on meta": Rule({"bias": torch.zeros(3, device="meta")}, ValueError, ("bias", "cpu", "meta")),
    "mode is unknown": Rule({"activation_mode": "int4"}, ValueError, ("activation_mode", "int4", "int8")),
    "mode is None": Rule({"activation_mode": None}, TypeError, ("activation_mode", "NoneType")),
    "epilogue is unknown": Rule({"epilogue": "tanh"}, ValueError, ("epilogue", "tanh", "relu")),
    "epilogue is a function": Rule({"epilogue": torch.relu}, TypeError, ("epilogue",)),
}


@check("linear", cases=_RULES, applies=lambda capabilities, _: 4 in capabilities.linear_bits)
def test_linear_refuses(target: Target, case: Rule) -> None:
    """`bittensor.linear` refuses what its rules exclude, in words that say what came; and so does a strict backend."""
    names = {"case": _good_linear(target), "changes": dict(case.changes)}
    holds(target, _REFUSED.format(case.error.__name__), **names, words=list(case.fragments))
    if target.capabilities.checks_arguments and "weight" not in case.changes:
        run_body(target.name, _REFUSED_DIRECTLY, names)


_KINDS: dict[str, tuple[str, Any]] = {
    **{f"zero kind {kind}": ("zero_kinds", kind) for kind in ("symmetric", "integer", "float")},
    **{f"scales {name}": ("scale_dtypes", dtype) for name, dtype in TORCH_DTYPES.items()},
    **{f"activation mode {mode}": ("activation_modes", mode) for mode in ("int8", "float")},
    **{f"epilogue {epilogue}": ("epilogues", epilogue) for epilogue in (None, "relu", "gelu", "silu")},
}


def _undeclared(capabilities: Capabilities, case: Any) -> bool:
    field, value = case
    return bool(value not in getattr(capabilities, field)) and 4 in capabilities.linear_bits


@check("linear", cases=_KINDS, applies=_undeclared)
def test_undeclared_kind_is_refused(target: Target, case: tuple[str, Any]) -> None:
    """A zero kind, scale dtype, mode or epilogue that is not declared is an UnsupportedOperationError."""
    field, value = case
    within = scope(target.capabilities)
    zero: ZeroKind = value if field == "zero_kinds" else within.zeros[0]
    names: dict[torch.dtype, FloatDtype] = {dtype: name for name, dtype in TORCH_DTYPES.items()}
    dtype = names[value] if field == "scale_dtypes" else within.scale_dtypes[0]
    epilogues = target.capabilities.epilogues
    mode: Mode = value if field == "activation_modes" else _some_mode(target)
    epilogue = value if field == "epilogues" else sorted(epilogues, key=str)[0]
    linear = LinearCase(replace(_WEIGHT, zero=zero, scale_dtype=dtype), (2,), mode, epilogue=epilogue)
    holds(target, _UNDECLARED, case=linear, words=[str(value)])


def _has_undeclared_sizes(capabilities: Capabilities, _: object) -> bool:
    return capabilities.group_size_multiple > GROUP_SIZE_MULTIPLE and 4 in capabilities.linear_bits


@check("linear", applies=_has_undeclared_sizes)
def test_undeclared_group_size_is_refused(target: Target) -> None:
    """A group size between the declared ones is an UnsupportedOperationError."""
    size = target.capabilities.group_size_multiple + GROUP_SIZE_MULTIPLE
    good = _good_linear(target)
    linear = replace(good, weight=replace(good.weight, k=2 * size, group_size=size))
    holds(target, _UNDECLARED, case=linear, words=[str(size)])


@check("linear")
def test_weight_of_another_layout_is_converted(target: Target, bits: int) -> None:
    """A weight that another backend holds is restored by that one, and prepared anew; and back again."""
    within = scope(target.capabilities)
    for zero, mode in product(within.zeros, sorted(target.capabilities.activation_modes)):
        case = LinearCase(within.weight(bits, 17, 41, 8, zero), (3,), "int8" if mode == "int8" else "float")
        holds(target, _CONVERTED, case=case, exact=target.is_exact)


@check("linear")
def test_prepared_weight_of_another_layout_is_refused(target: Target, bits: int) -> None:
    """Given directly, a prepared weight with another layout's name is an error, and never computed with."""
    case = LinearCase(scope(target.capabilities).weight(bits, 17, 41, 8), (3,), _some_mode(target))
    holds(target, _OTHER_LAYOUT, case=case)


def _some_mode(target: Target) -> Mode:
    return "int8" if "int8" in target.capabilities.activation_modes else "float"


def _good_linear(target: Target) -> LinearCase:
    within = scope(target.capabilities)
    weight = replace(_WEIGHT, zero=within.zeros[0], scale_dtype=within.scale_dtypes[0], scales=FloatFill())
    return LinearCase(weight, (2,), _some_mode(target), FloatFill("zero"), epilogue=within.epilogues[0])


_REFUSED = """
arguments = {{**case.tensors(), "bias": None, "activation_mode": case.mode, "epilogue": case.epilogue, **changes}}
with refused({}, words=words):
    bittensor.linear(**arguments)
"""
_REFUSED_DIRECTLY = """
backend = bittensor.current_backend()
arguments = {**case.tensors(), "bias": None, "activation_mode": case.mode, "epilogue": case.epilogue, **changes}
weight = backend.prepare(arguments.pop("weight"))
with refused(TypeError, ValueError, RuntimeError):
    backend.linear(weight=weight, **arguments)
"""
_UNDECLARED = """
with refused(bittensor.UnsupportedOperationError, words=words):
    case.call()
"""
_CONVERTED = """
weight = case.weight.quantized()
for _ in range(2):
    weight.prepared_for(Elsewhere())
    case.check(case.call(weight=weight), "", exact=exact)
"""
_OTHER_LAYOUT = """
backend, x = bittensor.current_backend(), case.tensors()["x"]
own = backend.prepare(case.weight.quantized())
for foreign in (replace(own, layout=f"{own.layout}x"), Elsewhere().prepare(case.weight.quantized())):
    with refused(ValueError):
        backend.linear(x, foreign, None, case.mode, None)
    with refused(ValueError):
        backend.restore(foreign)
"""
