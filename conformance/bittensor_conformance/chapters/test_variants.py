"""Variants: the kernels that ran are the variant's own. Otherwise a variant's green result is another's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import bittensor
from bittensor.backend import Backend

from ..cases import Case, MatmulCase, PackCase, ScaleFill, UnpackCase, call_on, snippet, source
from ..catalogue import check
from ..compare import fail
from ..fills import BiasFill
from ..float_fills import FloatFill
from ..linear_cases import LinearCase, held_to
from ..linear_strategies import scope
from ..targets import Target

T = TypeVar("T")


@check("pack", variants_only=True)
def test_pack_runs_its_own_kernels(target: Target, bits: int) -> None:
    """Only kernels called ``..._<variant>`` gain calls, and at least one does."""
    _check_kernels(target, [PackCase(bits, columns, (rows,)) for columns in (1, 64, 130) for rows in (1, 17)])


@check("unpack", variants_only=True)
def test_unpack_runs_its_own_kernels(target: Target, bits: int) -> None:
    """Only kernels called ``..._<variant>`` gain calls, and at least one does."""
    _check_kernels(target, [UnpackCase(bits, columns, (rows,)) for columns in (1, 64, 130) for rows in (1, 17)])


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
    _check_kernels(target, cases)


@check("prepare", variants_only=True)
def test_prepare_runs_its_own_kernels(target: Target, bits: int) -> None:
    """Preparing and restoring: no kernel of another variant gains a call."""
    within = scope(target.capabilities)
    backend = target.backend
    for n, k in ((1, 9), (33, 130)):
        weight = within.weight(bits, n, k).quantized()
        text = f"{source(within.weight(bits, n, k))} prepared and restored on {target.name}"
        _check_calls(target, partial(_prepare_and_restore, backend, weight), text)
        target.examples += 1


@check("linear", variants_only=True)
def test_linear_runs_its_own_kernels(target: Target, bits: int) -> None:
    """Only kernels called ``..._<variant>`` gain calls, and at least one does, in every mode and for M = 1."""
    within = scope(target.capabilities)
    for mode in target.capabilities.activation_modes:
        for m, n, k in ((1, 33, 130), (17, 33, 130), (65, 3, 17)):
            case = held_to(
                target.capabilities,
                LinearCase(
                    within.weight(bits, n, k, 16), (m,), "float" if mode == "float" else "int8", bias=FloatFill()
                ),
            )
            text = f"{snippet(case, target.name)}\nprint(bittensor.get_backend({target.name!r}).kernel_calls())"
            case.check(_check_calls(target, partial(call_on, target.name, case, text), text), text)
            target.examples += 1


def _prepare_and_restore(backend: Backend, weight: bittensor.QuantizedWeight) -> None:
    backend.restore(backend.prepare(weight))


def _check_kernels(target: Target, cases: list[PackCase] | list[UnpackCase] | list[MatmulCase]) -> None:
    for case in cases:
        _check_one(target, case)
        target.examples += 1


def _check_one(target: Target, case: Case) -> None:
    text = f"{snippet(case, target.name)}\nprint(bittensor.get_backend({target.name!r}).kernel_calls())"
    # Inputs and the oracle's result are made here, so that nothing else can run a kernel between the two counts.
    expected = case.expected
    result = _check_calls(target, lambda: call_on(target.name, case, text), text)
    if result.numpy().tolist() != expected.tolist():
        fail("the kernels ran, but the result is not the oracle's", text)


def _check_calls(target: Target, call: Callable[[], T], text: str) -> T:
    """The result of `call`, in which only the variant's own kernels may run, and one must."""
    suffix = f"_{target.variant}"
    before = dict(target.backend.kernel_calls())
    result = call()
    after = target.backend.kernel_calls()
    if not after:
        fail("kernel_calls() is empty: nothing shows that the variant's own kernels ran", text)
    ran = {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}
    if foreign := sorted(name for name in ran if not name.endswith(suffix)):
        fail(f"kernels of another variant ran on {target.name}: {foreign}; expected only ...{suffix}", text)
    if not any(count > 0 for count in ran.values()):
        fail(f"no kernel ...{suffix} gained a call on {target.name}", text)
    return result
