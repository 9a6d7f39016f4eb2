"""What the comparison with a bound lets pass, and what it does not."""

from __future__ import annotations

import math

import pytest
import torch
from bittensor_conformance.compare import same


@pytest.mark.parametrize("value", [1.5, math.nan, math.inf, -math.inf])
def test_no_other_value_passes_for_a_finite_one(value: float) -> None:
    with pytest.raises(AssertionError, match=r"at \[1\] expected 1.0"):
        same(torch.tensor([1.0, value]), torch.tensor([1.0, 1.0]), within=0.25)


def test_what_a_bound_allows() -> None:
    one = torch.tensor([1.0])
    same(torch.tensor([1.25]), one, within=0.25)
    for value in (0.0, math.nan, math.inf):
        same(torch.tensor([value]), torch.tensor([math.nan]), within=0.25)  # there is nothing to be near to
        same(torch.tensor([value]), one, within=torch.tensor([math.nan]).numpy())
