"""Each broken operation around the linear is rejected, and by the check that is meant for its fault."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from broken_operations import OPERATION_FAULTS
from test_rejections import check_rejected, outcomes, run_checks

_LINEAR = "8_transformer/linear_behind_norms_and_gates[float,4-bit]"
_FEED_FORWARD = "8_transformer/feed_forward_is_its_linears[float,4-bit]"
_CACHE = "8_transformer/attention_over_a_cache"
_WHOLE = "8_transformer/attention_of_whole_sequences"
_BITS = "8_transformer/a_token_has_the_same_bits_in_any_company"
_CONVOLUTION = "10_convolution/convolution_is_the_linear_of_patches[int8,4-bit]"
_LAYERS = "8_transformer/layers_are_their_operations[float,4-bit]"

MEANT_FOR: Mapping[str, str] = {
    "NormWithoutEpsilon": _LINEAR,
    "NormOfTheSum": _LINEAR,
    "GateAndUpSwapped": _LINEAR,
    "ForgetsTheResidual": _LINEAR,
    "FeedForwardWithoutTheEpilogue": _FEED_FORWARD,
    "HiddenValuesInHalfPrecision": _FEED_FORWARD,
    "HiddenValuesKeepTheirPrecision": _FEED_FORWARD,
    "LooksAhead": _CACHE,
    "KeepsPlainKeys": _CACHE,
    "ForgetsThePosition": _CACHE,
    "SharesHeadsInTurn": _CACHE,
    "MultipliesTheFuture": "8_transformer/a_bad_value_reaches_those_that_see_it",
    "DependsOnThePieces": _BITS,
    "PaddingIsSeen": _WHOLE,
    "PaddingIsZero": _WHOLE,
    "NothingSeenIsNan": _WHOLE,
    "ScalesByTheSize": _WHOLE,
    "DependsOnTheBatch": _BITS,
    "LayersShareNorms": _LAYERS,
    "LayersShareTheCache": _LAYERS,
    "LayersShareWeights": _LAYERS,
    "ExponentialsOverflow": "8_transformer/attention_of_large_scores",
    "AttentionSharesScratch": "8_transformer/concurrent_attention_does_not_disturb_each_other",
    "ConvolutionForgetsTheBias": _CONVOLUTION,
    "ConvolutionIgnoresStrides": _CONVOLUTION,
    "ConvolutionReusesItsResult": "10_convolution/convolution_on_any_number_of_threads[int8,4-bit]",
    "AttentionDiffersOnTheVariant:fast": "8_transformer/attention_is_the_same_on_every_variant",
    "OperationsBorrowKernels:fast": "8_transformer/operations_run_their_own_kernels[4-bit]",
}
"""The check that is meant to reject a fault, by the fault's target."""

CONTROLS = {"SoundOperations", "OwnOperationKernels"}


@pytest.mark.parametrize(("target", "check_id"), MEANT_FOR.items(), ids=MEANT_FOR.keys())
def test_a_fault_is_rejected_by_the_check_meant_for_it(target: str, check_id: str) -> None:
    check_rejected(target, check_id, "OwnOperationKernels:fast" if ":" in target else "SoundOperations")


def test_every_fault_has_its_check() -> None:
    assert {target.partition(":")[0] for target in MEANT_FOR} == set(OPERATION_FAULTS) - CONTROLS


def test_sound_operations_pass_the_same_checks() -> None:
    check_ids = [each for each in MEANT_FOR.values() if "variant" not in each and "kernels" not in each]
    report = run_checks("SoundOperations", check_ids)
    assert report["errors"] == []
    assert {check["id"]: check["message"] for check in report["checks"] if check["outcome"] != "passed"} == {}
    assert set(check_ids) <= set(outcomes(report))
