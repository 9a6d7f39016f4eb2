"""The layers on a backend: what they compute, and what a state_dict holds after they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bittensor.backend import Capabilities

from ..cases import MatmulCase, ScaleFill
from ..catalogue import check
from ..fills import BiasFill, Fill
from ..float_fills import FloatFill
from ..linear_cases import LinearCase, Mode
from ..linear_strategies import scope
from ..scripts import holds
from ..targets import Target

_MODES: Mapping[str, Mode] = {"int8": "int8", "float": "float"}


def _declared(capabilities: Capabilities, mode: Any) -> bool:
    return mode in capabilities.activation_modes


@check("packed_matmul", requires=("pack",))
def test_packed_linear_keeps_its_state(target: Target, bits: int) -> None:
    """`PackedLinear` is `packed_matmul`; its state_dict holds the packed words, and makes the same layer again."""
    for m, n, k in ((1, 3, 17), (5, 33, 65)):
        case = MatmulCase(bits, k, n, (m,), Fill(), Fill(seed=1), BiasFill(), ScaleFill("per_output", (0.5, 0.1)))
        holds(target, _PACKED, case=case)


@check("linear", cases=_MODES, applies=_declared)
def test_quantized_linear_keeps_its_state(target: Target, bits: int, case: Mode) -> None:
    """`QuantizedLinear` is `linear`; its state_dict is canonical, to the bit, after any use, and makes it again."""
    within = scope(target.capabilities)
    for zero in within.zeros:
        for dtype in within.scale_dtypes:
            weight = within.weight(bits, 17, 41, 16, zero, dtype)
            linear = LinearCase(weight, (5,), case, bias=FloatFill(seed=1), epilogue=within.epilogues[-1])
            allowed = linear.allowed
            reach = 0.0 if target.is_exact else 2 * float(allowed.reach[allowed.comparable].max(initial=0.0))
            holds(target, _QUANTIZED, case=linear, within=reach)


@check("linear", cases=_MODES, applies=_declared)
def test_quantized_linear_under_any_default_dtype(target: Target, bits: int, case: Mode) -> None:
    """What `torch.set_default_dtype` says changes no result: loaders of models set it to the dtype of the model."""
    within = scope(target.capabilities)
    for zero in within.zeros:
        for epilogue in within.epilogues:
            weight = within.weight(bits, 17, 41, 16, zero)
            linear = LinearCase(weight, (5,), case, bias=FloatFill(seed=1), epilogue=epilogue)
            holds(target, _DEFAULT_DTYPE, case=linear)


_PACKED = """
tensors, codes = case.tensors(), torch.from_numpy(case.weight.codes((case.n, case.k), case.bits))
def layer(weight):
    return bittensor.PackedLinear(weight, tensors["bias"], bits=case.bits, scale=tensors["scale"])
first, second = layer(codes), layer(torch.zeros_like(codes))
same(first(tensors["x"]), case.expected)
state = first.state_dict()
same(state["packed_weight"], oracle.pack(codes.numpy(), case.bits))
second.load_state_dict(state)
same(second(tensors["x"]), case.expected)
"""
_QUANTIZED = """
x, bias = (case.tensors()[name] for name in ("x", "bias"))
def layer(weight):
    return bittensor.QuantizedLinear(weight, bias, activation_mode=case.mode, epilogue=case.epilogue)
first = layer(case.weight.quantized())
second = layer(replace(case.weight, codes=Fill("max"), scales=FloatFill(seed=9)).quantized())
expected = first(x)
same(expected, case.call(), within)
state = first.state_dict()
codes = oracle.unpack(state["words"].numpy(), case.weight.k, case.bits)
same(codes, case.weight.weight.codes)
for name in ("scales", "zeros", "offsets"):
    if name in case.weight.placed:
        same(state[name], case.weight.placed[name].tensor)
second.load_state_dict(state)
same(second(x), expected, within)
"""
_DEFAULT_DTYPE = """
x, bias = (case.tensors()[name] for name in ("x", "bias"))
def result():
    weight = case.weight.quantized()
    return bittensor.QuantizedLinear(weight, bias, activation_mode=case.mode, epilogue=case.epilogue)(x)
expected, default = result(), torch.get_default_dtype()
for dtype in (torch.float64, torch.bfloat16):
    torch.set_default_dtype(dtype)
    try:
        actual = result()
    finally:
        torch.set_default_dtype(default)
    same(actual, expected)
"""
