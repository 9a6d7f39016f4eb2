"""Each broken linear is rejected, and by the check that is meant for its fault."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from broken_conditions import CONDITION_FAULTS
from broken_gradients import GRADIENT_FAULTS
from broken_linears import LINEAR_FAULTS
from broken_promises import PROMISE_FAULTS
from test_rejections import check_rejected, outcomes, run_checks

WEIGHTS, INT8, FLOAT, RELATIONS = "3_group_quantized", "4_linear_int8", "5_linear_float", "5_linear_relations"
GRADIENT, EMBEDDING = "6_linear_gradient", "9_embedding"

MEANT_FOR: Mapping[str, str] = {
    "SwapsNibblesInPrepare": f"{WEIGHTS}/restored_weight_of_every_shape[4-bit]",
    "SwapsNibblesAndSwapsBack": f"{INT8}/int8_every_tail[4-bit]",
    "RestoresWordsWithGarbage": f"{WEIGHTS}/restored_weight_of_every_shape[4-bit]",
    "RestoresRoundedScales": f"{WEIGHTS}/restored_scales_keep_every_bit[4-bit]",
    "TakesAnyLayout": "linear_arguments/prepared_weight_of_another_layout_is_refused[4-bit]",
    "GroupIndexRoundedEarly": f"{INT8}/int8_every_shape_of_groups[4-bit]",
    "ScalesTransposed": f"{INT8}/int8_every_shape_of_groups[4-bit]",
    "LastGroupHasScaleOfPrevious": f"{INT8}/int8_every_shape_of_groups[4-bit]",
    "LinearKTailDropped": f"{INT8}/int8_every_tail[4-bit]",
    "SymmetricZeroOffByOne": f"{INT8}/int8_every_dtype[4-bit]",
    "ZerosOfFirstGroup": f"{INT8}/int8_every_dtype[4-bit]",
    "UnusedBitsMultiplied": f"{INT8}/int8_every_tail[4-bit]",
    "RowHasOneScale": f"{INT8}/int8_every_magnitude[4-bit]",
    "LargestValueNotMagnitude": f"{INT8}/int8_takes_the_largest_magnitude[4-bit]",
    "RoundsCodesHalfAway": f"{INT8}/int8_rounds_codes_half_to_even[4-bit]",
    "DividesByTheScale": f"{INT8}/int8_rounds_codes_half_to_even[4-bit]",
    "ScaleByReciprocal": f"{INT8}/int8_every_magnitude[4-bit]",
    "NoSmallestGroup": f"{INT8}/int8_smallest_groups[4-bit]",
    "LargestOfSubnormals": f"{INT8}/int8_smallest_groups[4-bit]",
    "SixteenBitPairs": f"{INT8}/int8_extreme_codes[8-bit]",
    "AsumMissing": f"{INT8}/int8_every_dtype[4-bit]",
    "MultipliesThenAdds": f"{INT8}/int8_many_groups[4-bit]",
    "MultipliesThenAddsGroups": f"{INT8}/int8_many_groups[4-bit]",
    "ScalesEveryGroup": f"{INT8}/int8_every_dtype[4-bit]",
    "OffsetsFirst": f"{INT8}/int8_every_dtype[4-bit]",
    "EveryGroupHasItsOwnScale": f"{INT8}/int8_every_dtype[4-bit]",
    "GroupsTogetherByCount": f"{INT8}/int8_every_dtype[4-bit]",
    "GroupsWithOffsetsTogether": f"{INT8}/int8_every_dtype[4-bit]",
    "GroupsOfBytesTogether": f"{INT8}/int8_every_dtype[8-bit]",
    "ExactTotals": f"{INT8}/int8_extreme_codes[8-bit]",
    "GroupsDescend": f"{INT8}/int8_many_groups[4-bit]",
    "BiasBeforeTheGroups": f"{INT8}/int8_every_dtype[4-bit]",
    "NanReachesItsNeighbours": f"{RELATIONS}/linear_keeps_bad_rows_apart[int8,4-bit]",
    "NanIsZero": f"{INT8}/int8_one_bad_row[4-bit]",
    "ReluDropsNan": f"{INT8}/int8_one_bad_row[4-bit]",
    "GeluDropsNan": f"{INT8}/int8_one_bad_row[4-bit]",
    "TanhGelu": f"{INT8}/int8_epilogue_of_every_value[gelu,4-bit]",
    "TanhGeluOfFloats": f"{FLOAT}/float_epilogue_of_every_value[gelu,4-bit]",
    "TorchsSilu": f"{INT8}/int8_epilogue_of_every_value[silu,4-bit]",
    "HardSilu": f"{FLOAT}/float_epilogue_of_every_value[silu,4-bit]",
    "HalfPrecisionSilu": f"{FLOAT}/float_epilogue_of_every_value[silu,4-bit]",
    "EpilogueBeforeBias": f"{INT8}/int8_every_dtype[4-bit]",
    "EpilogueAfterTheCast": f"{INT8}/int8_every_dtype[4-bit]",
    "EpilogueOfFloatsForgotten": f"{FLOAT}/float_every_dtype[4-bit]",
    "ComputesUndeclaredEpilogues": "linear_arguments/undeclared_kind_is_refused[epilogue gelu]",
    "Truncates": f"{INT8}/int8_every_dtype[4-bit]",
    "LinearTailRowsOff": f"{RELATIONS}/linear_of_equal_rows[int8,4-bit]",
    "HalfPrecisionProducts": f"{FLOAT}/float_bound_is_below_the_signal[4-bit]",
    "LeansTowardsZero": f"{FLOAT}/float_errors_are_not_biased[4-bit]",
    "FloatNanLeaks": f"{RELATIONS}/linear_keeps_bad_rows_apart[float,4-bit]",
    "FloatReluDropsNan": f"{FLOAT}/float_nan_passes_epilogues_and_scales_of_zero[4-bit]",
    "FloatSkipsScalesOfZero": f"{FLOAT}/float_nan_passes_epilogues_and_scales_of_zero[4-bit]",
    "FloatDependsOnTheBatch": f"{RELATIONS}/linear_of_split_batch[float,4-bit]",
    "FloatDependsOnThreads": f"{RELATIONS}/linear_on_any_number_of_threads[float,4-bit]",
    "GradientOfPreviousGroupsScale": f"{GRADIENT}/gradient_of_every_shape_of_groups[4-bit]",
    "GradientTailDropped": f"{GRADIENT}/gradient_of_every_shape_of_groups[4-bit]",
    "GradientDropsLastRows": f"{GRADIENT}/gradient_of_every_tail[4-bit]",
    "GradientWithoutOffset": f"{GRADIENT}/gradient_of_every_dtype[4-bit]",
    "GradientSymmetricZeroOffByOne": f"{GRADIENT}/gradient_of_small_integers_is_exact[4-bit]",
    "GradientInBfloat16": f"{GRADIENT}/gradient_bound_is_below_the_signal[4-bit]",
    "GradientDependsOnTheBatch": f"{GRADIENT}/gradient_does_not_depend_on_the_batch[4-bit]",
    "GradientNanLeaks": f"{GRADIENT}/gradient_keeps_bad_rows_apart[4-bit]",
    "GradientOfInfinityIsNan": f"{GRADIENT}/gradient_keeps_bad_rows_apart[4-bit]",
    "GradientOfOneValueForAll": f"{GRADIENT}/linear_passes_gradients_of_every_form[int8,4-bit]",
    "GradientIgnoresStride": f"{GRADIENT}/gradient_in_each_layout[4-bit]",
    "EmbeddingOfTheFirstTile": f"{EMBEDDING}/every_row[4-bit]",
    "EmbeddingOfIndicesIn16Bits": f"{EMBEDDING}/rows_beyond_16_bits[4-bit]",
    "EmbeddingCastsBeforeTheOffset": f"{EMBEDDING}/rows_of_every_dtype_and_magnitude[4-bit]",
    "EmbeddingIgnoresStride": f"{EMBEDDING}/indices_of_every_form[4-bit]",
    "EmbeddingTakesIndicesFromTheEnd": f"{EMBEDDING}/an_index_that_is_no_row_is_refused[4-bit]",
    "LinearIgnoresStrideOfX": f"{INT8}/int8_each_argument_in_each_layout[4-bit]",
    "LinearWritesToX": f"{INT8}/int8_one_bad_row[4-bit]",
    "ReadsPastThePreparedWeight": "memory/linear_stays_inside_its_inputs[4-bit]",
    "ReadsPastThePreparedWeightForGradients": "memory/gradient_stays_inside_its_inputs[4-bit]",
    "GradientTakesAnyLayout": f"{GRADIENT}/gradient_refuses_the_layout_of_another[4-bit]",
    "ComputesUndeclaredGradients": "memory/undeclared_gradient_is_refused[4-bit]",
    "GradientSharesScratch": f"{GRADIENT}/concurrent_gradients_do_not_disturb_each_other[4-bit]",
    "LinearReusesItsResult": f"{RELATIONS}/linear_results_are_new_memory[int8,4-bit]",
    "GradientReusesItsResult": f"{GRADIENT}/gradient_results_are_new_memory[4-bit]",
    "TakesABiasInsideXForNone": f"{RELATIONS}/linear_of_arguments_that_share_memory[int8,4-bit]",
    "WearsItsWeightOut": "modules/quantized_linear_keeps_its_state[int8,4-bit]",
    "BackwardForgetsTheEpilogue": f"{GRADIENT}/linear_passes_gradients[gelu,4-bit]",
    "BoundedWithCoarseActivations": f"{INT8}/int8_every_dtype[4-bit]",
    "BoundedNanLeaks": f"{RELATIONS}/linear_keeps_bad_rows_apart[int8,4-bit]",
    "BoundedHidesNan": f"{INT8}/bounded_int8_one_bad_row[4-bit]",
    "BoundedDependsOnThreads": f"{RELATIONS}/linear_on_any_number_of_threads[int8,4-bit]",
    "BoundedTailRowsOff": f"{RELATIONS}/linear_of_equal_rows[int8,4-bit]",
    "WholeTilesWrong": f"{INT8}/int8_round_sizes_and_sizes_beyond_16_bits[4-bit]",
    "FloatWholeTilesWrong": f"{FLOAT}/float_round_sizes_and_sizes_beyond_16_bits[4-bit]",
    "EpilogueLostForManyRows": f"{INT8}/int8_many_rows_of_every_kind_of_group[4-bit]",
    "FewerThan513Groups": f"{INT8}/int8_many_groups[4-bit]",
    "HalfRowsBeyond2048": f"{INT8}/int8_long_rows_of_every_dtype[4-bit]",
    "ExpandedMiddleTakenForRows": f"{INT8}/int8_each_argument_in_each_layout[4-bit]",
    "FloatRowAloneInAnotherOrder": f"{RELATIONS}/linear_of_split_batch[float,4-bit]",
    "FloatWrongOnFiveThreads": f"{RELATIONS}/linear_on_any_number_of_threads[float,4-bit]",
    "NegativeNanIsANumber": f"{RELATIONS}/linear_of_every_nan[int8,4-bit]",
    "BiasNanRoundsToZero": f"{RELATIONS}/linear_of_every_nan[int8,4-bit]",
    "HalfBiasWithoutSubnormals": f"{INT8}/int8_epilogue_of_every_value[relu,4-bit]",
    "KeepsQuantizedX": f"{RELATIONS}/linear_of_what_x_holds_now[int8,4-bit]",
    "LeavesOneThread": f"{RELATIONS}/linear_leaves_the_state_of_torch[int8,4-bit]",
    "DrawsFromTheGenerator": f"{RELATIONS}/linear_leaves_the_state_of_torch[int8,4-bit]",
    "RestoresIntoOneBuffer": f"{WEIGHTS}/weights_of_one_form_stay_apart[4-bit]",
    "EmbeddingReusesItsResult": f"{EMBEDDING}/embedded_rows_are_new_memory[4-bit]",
    "EmbeddingOfIndicesIn32Bits": f"{EMBEDDING}/an_index_that_is_no_row_is_refused[4-bit]",
    "EmbeddingSharesScratch": f"{EMBEDDING}/concurrent_embeddings_do_not_disturb_each_other[4-bit]",
    "GradientBorrowsKernels:fast": "variants/gradient_runs_its_own_kernels[4-bit]",
    "LinearBorrowsKernels:fast": "variants/linear_runs_its_own_kernels[4-bit]",
    "FloatDiffersOnTheVariant:fast": f"{RELATIONS}/linear_is_the_same_on_every_variant[float,4-bit]",
}
"""The check that is meant to reject a fault, by the fault's target."""

CONTROLS = {"SoundLinear", "NarrowLinear", "BoundedLinear", "BoundedByFloats", "OwnLinearKernels"}


@pytest.mark.parametrize(("target", "check_id"), MEANT_FOR.items(), ids=MEANT_FOR.keys())
def test_a_fault_is_rejected_by_the_check_meant_for_it(target: str, check_id: str) -> None:
    check_rejected(target, check_id, "OwnLinearKernels:fast" if ":" in target else "SoundLinear")


def test_every_fault_has_its_check() -> None:
    assert {target.partition(":")[0] for target in MEANT_FOR} == {
        *LINEAR_FAULTS,
        *GRADIENT_FAULTS,
        *PROMISE_FAULTS,
        *CONDITION_FAULTS,
    } - CONTROLS


def test_the_sound_linear_passes_the_same_checks() -> None:
    # Some are owed only by backends that check their arguments, or declare bounded numerics.
    others = ("variant", "undeclared", "no_row", "bounded")
    check_ids = [each for each in MEANT_FOR.values() if not any(other in each for other in others)]
    report = run_checks("SoundLinear", check_ids)
    assert report["errors"] == []
    assert {check["id"]: check["message"] for check in report["checks"] if check["outcome"] != "passed"} == {}
    assert set(check_ids) <= set(outcomes(report))


@pytest.mark.parametrize("control", ["BoundedLinear", "BoundedByFloats"])
def test_a_linear_with_bounded_numerics_is_held_to_its_bound(control: str) -> None:
    check_ids = [check_id for target, check_id in MEANT_FOR.items() if target.startswith("Bounded")]
    report = run_checks(control, check_ids)
    assert {check["id"]: check["message"] for check in report["checks"] if check["outcome"] != "passed"} == {}
    assert set(check_ids) <= set(outcomes(report))


def test_a_linear_that_declares_little_is_held_to_that_only() -> None:
    report = run_checks("NarrowLinear", [check_id for check_id in MEANT_FOR.values() if "variant" not in check_id])
    assert {check["id"]: check["message"] for check in report["checks"] if check["outcome"] != "passed"} == {}
    assert not any("float" in check_id.partition("/")[2] for check_id in outcomes(report))
