"""The seeds of the fuzzers, each of which once failed or reaches code of its own, run without a finding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conformance.fuzzing import checkpoint_files, model_operator_calls, operator_calls

SEEDS = Path(__file__).parents[1] / "fuzzing" / "seeds"
RUNS: dict[str, Callable[[bytes], None]] = {
    "operators": operator_calls.run,
    "model-operators": model_operator_calls.run,
    "checkpoints": checkpoint_files.run,
}


@pytest.mark.filterwarnings("ignore")  # torch warns of some of the arguments
@pytest.mark.parametrize("name", RUNS)
def test_seeds(name: str) -> None:
    files = sorted((SEEDS / name).iterdir())
    assert len(files) >= 10
    for file in files:
        try:
            RUNS[name](file.read_bytes())
        except Exception as error:
            error.add_note(f"seed {name}/{file.name}")
            raise
