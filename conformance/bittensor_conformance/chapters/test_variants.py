"""Variants: the kernels that ran are the variant's own. Otherwise a variant's green result is another's."""

from __future__ import annotations

from ..cases import Case, MatmulCase, PackCase, ScaleFill, UnpackCase, call_on, snippet
from ..catalogue import check
from ..compare import fail
from ..fills import BiasFill
from ..targets import Target


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


def _check_kernels(target: Target, cases: list[PackCase] | list[UnpackCase] | list[MatmulCase]) -> None:
    suffix = f"_{target.variant}"
    for case in cases:
        _check_one(target, case, suffix)
        target.examples += 1


def _check_one(target: Target, case: Case, suffix: str) -> None:
    text = f"{snippet(case, target.name)}\nprint(bittensor.get_backend({target.name!r}).kernel_calls())"
    # Inputs and the oracle's result are made here, so that nothing else can run a kernel between the two counts.
    expected = case.expected
    before = dict(target.backend.kernel_calls())
    result = call_on(target.name, case, text)
    after = target.backend.kernel_calls()
    if not after:
        fail("kernel_calls() is empty: nothing shows that the variant's own kernels ran", text)
    ran = {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}
    if foreign := sorted(name for name in ran if not name.endswith(suffix)):
        fail(f"kernels of another variant ran on {target.name}: {foreign}; expected only ...{suffix}", text)
    if not any(count > 0 for count in ran.values()):
        fail(f"no kernel ...{suffix} gained a call on {target.name}", text)
    if result.numpy().tolist() != expected.tolist():
        fail("the kernels ran, but the result is not the oracle's", text)
