"""Variants: the kernels that ran are the variant's own. Otherwise a variant's green result is another's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from ..cases import MatmulCase, PackCase, ScaleFill, UnpackCase
from ..catalogue import PROTOCOL, check
from ..fills import BiasFill
from ..float_fills import FloatFill
from ..gradient_cases import GradientCase
from ..linear_cases import LinearCase, Mode, WeightCase
from ..linear_strategies import FLOAT_DTYPES, scope
from ..scripts import holds
from ..targets import Target


@check("pack", variants_only=True)
def test_pack_runs_its_own_kernels(target: Target, bits: int) -> None:
    """Only kernels called ``..._<variant>`` gain calls, and at least one does."""
    _check_cases(target, [PackCase(bits, columns, (rows,)) for columns in (1, 64, 130) for rows in (1, 17)])


@check("unpack", variants_only=True)
def test_unpack_runs_its_own_kernels(target: Target, bits: int) -> None:
    """Only kernels called ``..._<variant>`` gain calls, and at least one does."""
    _check_cases(target, [UnpackCase(bits, columns, (rows,)) for columns in (1, 64, 130) for rows in (1, 17)])


@check("packed_matmul", variants_only=True)
def test_packed_matmul_runs_its_own_kernels(target: Target, bits: int) -> None:
    """Only kernels called ``..._<variant>`` gain calls, and at least one does, in every epilogue and for M = 1."""
    scale = ScaleFill("per_output", (0.5, 0.25))
    cases = [
        MatmulCase(bits, k, n, (m,), bias=BiasFill(), scale=scale if form == "scaled" else None, packed_x=packed,
                   accumulator=form == "accumulator")
        for m, n, k in ((1, 33, 130), (17, 33, 130), (65, 3, 17))
        for form in ("accumulator", "saturated", "scaled")
        for packed in (False, True)
    ]  # fmt: skip
    _check_cases(target, cases)


@check("prepare", variants_only=True)
def test_prepare_runs_its_own_kernels(target: Target, bits: int) -> None:
    """Preparing and restoring: no kernel of another variant gains a call."""
    within = scope(target.capabilities)
    _check_cases(target, [within.weight(bits, n, k) for n, k in ((1, 9), (33, 130))])


@check("linear", variants_only=True)
def test_linear_runs_its_own_kernels(target: Target, bits: int) -> None:
    """Only kernels called ``..._<variant>`` gain calls, and at least one does, in every mode and for M = 1."""
    within = scope(target.capabilities)
    modes: list[Mode] = [mode for mode in ("int8", "float") if mode in target.capabilities.activation_modes]
    _check_cases(
        target,
        [
            LinearCase(within.weight(bits, n, k, 16), (m,), mode, bias=FloatFill())
            for mode in modes
            for m, n, k in ((1, 33, 130), (17, 33, 130), (65, 3, 17))
        ],
    )


@check("linear_input_grad", variants_only=True)
def test_gradient_runs_its_own_kernels(target: Target, bits: int) -> None:
    """Only kernels called ``..._<variant>`` gain calls, and at least one does, for M = 1 and for many rows."""
    within = scope(target.capabilities)
    sizes = ((1, 33, 130), (17, 33, 130), (65, 3, 17))
    _check_cases(target, [GradientCase(within.weight(bits, n, k, 16), (m,)) for m, n, k in sizes])


@check(PROTOCOL, variants_only=True)
def test_every_kernel_ran(target: Target) -> None:
    """Of the kernels that a variant lists as its own, there is none that no operation reaches."""
    within = scope(target.capabilities)
    declared = target.capabilities
    cases: list[Any] = []
    for bits in sorted(declared.bits):
        cases += [PackCase(bits, 130, (17,)), UnpackCase(bits, 130, (17,))]
        cases += [MatmulCase(bits, 130, 33, (m,), accumulator=sums) for m in (1, 17) for sums in (False, True)]
    for bits in sorted(declared.linear_bits) if "linear" in declared.operations else ():
        for x_dtype, zero in product(FLOAT_DTYPES, within.zeros):
            weight = within.weight(bits, 33, 130, 16, zero)
            cases += [weight, *(GradientCase(weight, (m,), dtype=x_dtype) for m in (1, 17))]
            cases += [LinearCase(weight, (m,), mode, x_dtype=x_dtype) for m in (1, 17) for mode in ("int8", "float")]
    operations = {
        PackCase: "pack",
        UnpackCase: "unpack",
        MatmulCase: "packed_matmul",
        WeightCase: "prepare",
        LinearCase: "linear",
        GradientCase: "linear_input_grad",
    }
    modes = declared.activation_modes
    owed = [each for each in cases if operations[type(each)] in declared.operations]
    owed = [each for each in owed if not isinstance(each, LinearCase) or each.mode in modes]
    models = [each for each in owed if isinstance(each, LinearCase) and each.weight.scale_dtype == "float32"][:2]
    weights = [each for each in owed if isinstance(each, WeightCase)]
    tables = weights if "embedding" in declared.operations else []
    used = {"models": models, "tables": tables, "weights": weights, "modes": sorted(modes)}
    holds(target, _EVERY_KERNEL, cases=owed, **used, suffix=f"_{target.variant}")


def _check_cases(target: Target, cases: Sequence[Any]) -> None:
    for case in cases:
        case.run(target.name)
        holds(target, _OWN_KERNELS, case=case, suffix=f"_{target.variant}")


# Cases are run once before: inputs exist, so that nothing else can run a kernel between the two counts.
_OWN_KERNELS = """
case.call()
backend = bittensor.current_backend()
before = dict(backend.kernel_calls())
case.call()
after = backend.kernel_calls()
assert after, "kernel_calls() is empty: nothing shows that the variant's own kernels ran"
ran = {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}
foreign = sorted(name for name in ran if not name.endswith(suffix))
assert not foreign, f"kernels of another variant ran: {foreign}; expected only ...{suffix}"
assert any(count > 0 for count in ran.values()), f"no kernel ...{suffix} gained a call"
"""
_EVERY_KERNEL = """
backend = bittensor.current_backend()
before = dict(backend.kernel_calls())
for case in cases:
    case.call()
for case in models:
    x, fused, width = torch.ones(3, case.weight.k), backend.fused(), case.weight.k
    weight = backend.prepare(case.weight.quantized())
    fused.linear(x, weight, case.mode, norm=(torch.ones(width), 1e-5))
    fused.linear(torch.ones(3, 2 * width), weight, case.mode, gated=True)
    rotation = torch.ones(3, 16), torch.zeros(3, 16)
    fused.attend(torch.ones(3, 48), rotation, torch.zeros(1, 1, 16, 64), torch.zeros(1, 8, 16), 0, heads=1)
for case in tables:
    backend.embedding(torch.tensor([0]), backend.prepare(case.quantized()), torch.float32)
for case in weights:
    depthwise = bittensor.convolution.ConvolutionGeometry((10, 13), (1, 1), (0, 0, 0, 0), (1, 1), case.n)
    weight, images = backend.prepare(case.quantized()), torch.ones(1, 11, 13, case.n)
    for mode in modes:
        backend.fused().conv2d(images, weight, None, depthwise, mode, None)
after = backend.kernel_calls()
idle = sorted(name for name, count in after.items() if name.endswith(suffix) and count == before.get(name, 0))
assert not idle, f"kernels that no operation reached: {idle}"
"""
