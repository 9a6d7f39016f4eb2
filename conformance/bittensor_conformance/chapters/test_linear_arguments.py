"""Arguments of linear that are refused, kinds that are not declared, and weights in another backend's layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

import bittensor
from bittensor import PreparedWeight, QuantizedWeight, UnsupportedOperationError
from bittensor.backend import PROTOCOL_VERSION, Backend, Capabilities
from bittensor.prepared_weight import GROUP_SIZE_MULTIPLE

from ..cases import snippet
from ..catalogue import check
from ..compare import fail
from ..float_fills import FloatFill
from ..linear_cases import TORCH_DTYPES, LinearCase, Mode, WeightCase, held_to
from ..linear_strategies import scope
from ..oracle_linear import FloatDtype, ZeroKind
from ..targets import Target

_WEIGHT = WeightCase(4, 3, 9)
_REFUSALS = (TypeError, ValueError, RuntimeError)


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
    mode = _some_mode(target)
    good = {"x": _zeros(2, 9), "weight": _good_weight(target).quantized(), "bias": None}
    arguments = {**good, "activation_mode": mode, "epilogue": None, **case.changes}
    shown = f"bittensor.set_backend({target.name!r})\nbittensor.linear with {dict(case.changes)!r}"
    with bittensor.use_backend(target.name) as backend:
        _check_raises(lambda: bittensor.linear(**arguments), (case.error,), case.fragments, shown)
        if backend.capabilities.checks_arguments and "weight" not in case.changes:
            prepared = backend.prepare(arguments.pop("weight"))
            _check_raises(lambda: backend.linear(weight=prepared, **arguments), _REFUSALS, (), f"direct: {shown}")
    target.examples += 1


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
    with bittensor.use_backend(target.name):
        _check_raises(linear.call, (UnsupportedOperationError,), (str(value),), snippet(linear, target.name))
    target.examples += 1


@check(
    "linear",
    applies=lambda capabilities, _: (
        capabilities.group_size_multiple > GROUP_SIZE_MULTIPLE and 4 in capabilities.linear_bits
    ),
)
def test_undeclared_group_size_is_refused(target: Target) -> None:
    """A group size between the declared ones is an UnsupportedOperationError."""
    size = target.capabilities.group_size_multiple + GROUP_SIZE_MULTIPLE
    linear = LinearCase(replace(_good_weight(target), k=2 * size, group_size=size), (2,), _some_mode(target))
    with bittensor.use_backend(target.name):
        _check_raises(linear.call, (UnsupportedOperationError,), (str(size),), snippet(linear, target.name))
    target.examples += 1


class _Elsewhere(Backend):
    """A backend with a layout that only it can read: the canonical tensors, inverted or negated."""

    name = "elsewhere"
    protocol_version = PROTOCOL_VERSION
    capabilities = Capabilities(operations=frozenset({"prepare", "restore", "linear"}), layout="elsewhere/1")

    def prepare(self, weight: QuantizedWeight) -> PreparedWeight:
        canonical = weight.canonical()
        return PreparedWeight(canonical.form, "elsewhere/1", tuple(map(_turned, canonical.tensors)))

    def restore(self, weight: PreparedWeight) -> QuantizedWeight:
        tensors = tuple(map(_turned, weight.tensors))
        return QuantizedWeight.from_canonical(PreparedWeight(weight.form, "canonical", tensors))


def _turned(tensor: torch.Tensor) -> torch.Tensor:
    return -tensor if tensor.is_floating_point() else ~tensor


@check("linear")
def test_weight_of_another_layout_is_converted(target: Target, bits: int) -> None:
    """A weight that another backend holds is restored by that one, and prepared anew; and back again."""
    within = scope(target.capabilities)
    elsewhere = _Elsewhere()
    for zero in within.zeros:
        for mode in sorted(target.capabilities.activation_modes):
            linear = held_to(
                target.capabilities,
                LinearCase(within.weight(bits, 17, 41, 8, zero), (3,), "int8" if mode == "int8" else "float"),
            )
            text = f"{snippet(linear, target.name)}\n# with a weight that a backend with another layout has prepared"
            weight = linear.weight.quantized()
            for _ in range(2):
                weight.prepared_for(elsewhere)
                with bittensor.use_backend(target.name):
                    linear.check(linear.call(weight=weight), text)
            target.examples += 1


@check("linear")
def test_prepared_weight_of_another_layout_is_refused(target: Target, bits: int) -> None:
    """Given directly, a prepared weight with another layout's name is an error, and never computed with."""
    within = scope(target.capabilities)
    linear = LinearCase(within.weight(bits, 17, 41, 8), (3,))
    backend, x = target.backend, linear.inputs["x"].tensor
    mode = _some_mode(target)
    own = backend.prepare(linear.weight.quantized())
    for foreign in (replace(own, layout=f"{own.layout}x"), _Elsewhere().prepare(linear.weight.quantized())):
        text = f"# on {target.name}: its own layout is {own.layout!r}, the weight's {foreign.layout!r}"
        for call in (lambda w=foreign: backend.linear(x, w, None, mode, None), lambda w=foreign: backend.restore(w)):
            _check_raises(call, (ValueError,), (), text)
        target.examples += 1


def _some_mode(target: Target) -> Mode:
    return "int8" if "int8" in target.capabilities.activation_modes else "float"


def _good_weight(target: Target) -> WeightCase:
    within = scope(target.capabilities)
    return replace(_WEIGHT, zero=within.zeros[0], scale_dtype=within.scale_dtypes[0], scales=FloatFill())


def _check_raises(
    call: Callable[[], object], errors: tuple[type[Exception], ...], fragments: tuple[str, ...], shown: str
) -> None:
    wanted = " or ".join(error.__name__ for error in errors)
    try:
        call()
    except errors as error:
        if missing := [fragment for fragment in fragments if fragment not in str(error)]:
            fail(f"the message lacks {missing}: {error}", shown)
        return
    except Exception as error:
        fail(f"expected {wanted}, got {type(error).__name__}: {error}", shown)
    fail(f"expected {wanted}, but the call returned", shown)
