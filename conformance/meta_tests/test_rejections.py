"""Each broken backend is rejected, and by the check that is meant for its fault."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Mapping

import pytest
import torch
from bittensor_conformance.report import Report
from bittensor_conformance.session import Request, run_session
from broken_backends import FAULTS

PACKED_WORDS, MATMUL, RELATIONS = "1_packed_words", "2_integer_matmul", "2_integer_matmul_relations"

MEANT_FOR: Mapping[str, str] = {
    "SwappedNibbles": f"{PACKED_WORDS}/pack_places_every_code[4-bit]",
    "HighNibbleFirst": f"{PACKED_WORDS}/pack_places_every_code[4-bit]",
    "LastCodeNotMasked": f"{PACKED_WORDS}/unpack_ignores_unused_bits[4-bit]",
    "ArithmeticShift": f"{PACKED_WORDS}/unpack_finds_every_code[4-bit]",
    "UnusedBitsSet": f"{PACKED_WORDS}/pack_every_length[2-bit]",
    "ReturnsItsInput": f"{PACKED_WORDS}/pack_each_layout[8-bit]",
    "WholeBlocksEndEarly": f"{PACKED_WORDS}/unpack_every_length[4-bit]",
    "StridedResult": f"{PACKED_WORDS}/unpack_each_layout[1-bit]",
    "MasksCodes": "arguments/pack_names_the_first_bad_code[4-bit]",
    "KTailDropped": f"{MATMUL}/every_tail[4-bit]",
    "XZeroOffByOne": f"{MATMUL}/every_zero_point[4-bit]",
    "WeightZeroIgnoredOnTail": f"{MATMUL}/every_tail[4-bit]",
    "UnusedBitsOfWeightUsed": f"{MATMUL}/unused_bits_of_the_weight_do_not_matter[4-bit]",
    "SixteenBitSaturation": f"{MATMUL}/extreme_codes[8-bit]",
    "Float32Accumulator": f"{MATMUL}/accumulator_at_the_int32_limit[8-bit]",
    "RowPositionMatters": f"{RELATIONS}/equal_rows_give_equal_results[4-bit]",
    "NeighbourRowLeaks": f"{RELATIONS}/split_batch_gives_the_same_rows[4-bit]",
    "OutputsWrapAt16Bits": f"{MATMUL}/round_sizes_and_sizes_beyond_16_bits[4-bit]",
    "RowsWrapAt16Bits": f"{MATMUL}/round_sizes_and_sizes_beyond_16_bits[4-bit]",
    "ThreadsMatter": f"{RELATIONS}/number_of_threads_does_not_matter[4-bit]",
    "SharedScratch": f"{RELATIONS}/concurrent_calls_do_not_disturb_each_other[4-bit]",
    "Wraps": f"{MATMUL}/saturated_codes_match_the_oracle[4-bit]",
    "RoundsHalfAwayFromZero": f"{MATMUL}/rounding[4-bit]",
    "RoundsTheExactProduct": f"{MATMUL}/rounding[4-bit]",
    "ScaleAlongRows": f"{MATMUL}/scale_forms[4-bit]",
    "NegatedScaleReadRaw": f"{MATMUL}/scale_forms[2-bit]",
    "BiasOnlyForOneRow": f"{MATMUL}/bias_in_every_batch[4-bit]",
    "BytesOfBiasMasked": f"{MATMUL}/bias_in_every_batch[4-bit]",
    "BiasAfterScale": f"{MATMUL}/rounding_of_large_accumulators[4-bit]",
    "StrideOfXIgnored": f"{RELATIONS}/strided_inputs_give_the_contiguous_result[4-bit]",
    "StrideOfBiasIgnored": f"{MATMUL}/each_argument_in_each_layout[4-bit]",
    "WritesToItsInput": f"{RELATIONS}/inputs_are_unmodified[4-bit]",
    "ReadsPastTheEnd": "memory/packed_matmul_stays_inside_its_inputs[4-bit]",
    "ReadsBeforeTheStart": "memory/unpack_stays_inside_its_inputs[4-bit]",
    "FlattensNoRows": f"{MATMUL}/empty[4-bit]",
    "FloatsForNoRows": f"{MATMUL}/empty[4-bit]",
    "ComputesWhatItDoesNotDeclare": "memory/undeclared_pack_is_refused[2-bit]",
    "DiesOnWhatItDoesNotDeclare": "memory/undeclared_unpack_is_refused[2-bit]",
    "BorrowedKernels:fast": "variants/packed_matmul_runs_its_own_kernels[4-bit]",
    "NoKernelsCounted:fast": "variants/packed_matmul_runs_its_own_kernels[4-bit]",
    "PackReusesItsResult": f"{PACKED_WORDS}/packed_words_are_new_memory[4-bit]",
    "UnpackReusesItsResult": f"{PACKED_WORDS}/unpacked_codes_are_new_memory[4-bit]",
    "MatmulReusesItsResult": f"{RELATIONS}/results_are_new_memory[4-bit]",
    "CentersOneTensorTwice": f"{RELATIONS}/one_tensor_may_be_both_operands[4-bit]",
    "IdleKernel:fast": "variants/every_kernel_ran",
    "KernelsNeverRun:fast": "variants/packed_matmul_runs_its_own_kernels[4-bit]",
}
"""The check that is meant to reject a fault, by the fault's target."""

CONTROLS = {"Sound", "OwnKernels", "EndsTheProcess"}


def run_checks(target: str, check_ids: list[str]) -> Report:
    keyword = " or ".join(sorted({f"({' and '.join(_name_and_parts(check_id))})" for check_id in check_ids}))
    return run_session(Request(target, "dev", keyword, {}))


def _name_and_parts(check_id: str) -> list[str]:
    name, _, parts = check_id.partition("/")[2].rstrip("]").partition("[")
    return [name, *parts.replace(",", " ").split()]


def outcomes(report: Report) -> dict[str, str]:
    return {check["id"]: check["outcome"] for check in report["checks"]}


@pytest.mark.parametrize(("target", "check_id"), MEANT_FOR.items(), ids=MEANT_FOR.keys())
def test_a_fault_is_rejected_by_the_check_meant_for_it(target: str, check_id: str) -> None:
    check_rejected(target, check_id, "OwnKernels:fast" if ":" in target else "Sound")


def check_rejected(target: str, check_id: str, control: str) -> None:
    report = run_checks(target, [check_id])
    assert report["errors"] == []
    assert outcomes(report).get(check_id) == "failed", f"{target} passed {check_id}"
    # Rejected for a wrong result or a refusal that did not come, not because the fault itself does not run.
    message = next(check["message"] for check in report["checks"] if check["id"] == check_id)
    assert "expected a result, got" not in message, message
    assert "\nContract: docs/" in message, message
    script = script_of(message)
    if "the process ended with SIG" in message:
        return
    # What is printed runs as it is, fails on the fault, and holds for a backend without it.
    with pytest.raises(AssertionError):
        run_script(script)
    if "undeclared" not in check_id:  # what the control declares, it does not refuse
        run_script(script.replace(repr(target), repr(control)))


def script_of(message: str) -> str:
    text = message.rpartition("To reproduce:\n")[2]
    lines = [line for line in text.splitlines() if line.startswith("    ") or not line.strip()]
    return textwrap.dedent("\n".join(lines))


def run_script(text: str) -> None:
    threads = torch.get_num_threads()
    try:
        exec(compile(text, "<reproduction>", "exec"), {})
    finally:
        torch.set_num_threads(threads)


def test_the_script_of_a_crash_crashes() -> None:
    check_id = MEANT_FOR["ReadsPastTheEnd"]
    report = run_checks("ReadsPastTheEnd", [check_id])
    script = script_of(next(check["message"] for check in report["checks"] if check["id"] == check_id))
    crash = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert crash.returncode < 0, crash
    sound = script.replace("'ReadsPastTheEnd'", "'Sound'")
    done = subprocess.run([sys.executable, "-c", sound], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_fault_has_its_check() -> None:
    assert {target.partition(":")[0] for target in MEANT_FOR} == set(FAULTS) - CONTROLS


def test_the_sound_backend_passes_the_same_checks() -> None:
    report = run_checks("Sound", [check_id for target, check_id in MEANT_FOR.items() if ":" not in target])
    assert report["errors"] == []
    assert {check["id"]: check["message"] for check in report["checks"] if check["outcome"] != "passed"} == {}
    owed = {check_id for check_id in MEANT_FOR.values() if "undeclared" not in check_id and "variants" not in check_id}
    assert owed <= set(outcomes(report))


def test_a_variant_that_runs_its_own_kernels_passes() -> None:
    check_id = "variants/packed_matmul_runs_its_own_kernels[4-bit]"
    assert outcomes(run_checks("OwnKernels:fast", [check_id])) == {check_id: "passed"}
