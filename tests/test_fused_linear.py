"""`linear` of the operations of transformers, with norm, gate and residual: its composition, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from fused_operands import EPSILON, weight_of

import bittensor
from bittensor.fused import ComposedOperations


def test_linear_is_near_its_composition() -> None:
    backend, x = bittensor.get_backend("cpp"), torch.randn(5, 128)
    weight, norm = backend.prepare(weight_of(32, 64, group_size=32)), (torch.rand(128), EPSILON)
    wide = backend.prepare(weight_of(32, 128))
    composed, fused = ComposedOperations(backend), backend.fused()
    assert torch.allclose(
        fused.linear(x, wide, "float", norm, residual=x[:, :32]),
        composed.linear(x, wide, "float", norm, residual=x[:, :32]),
        atol=1e-4,
    )
    assert torch.allclose(
        fused.linear(x, weight, "float", gated=True), composed.linear(x, weight, "float", gated=True), atol=1e-4
    )
    reference = bittensor.get_backend("reference")
    assert isinstance(reference.fused(), ComposedOperations)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(3, 15)}, "x: expected 16 columns"),
        ({"gated": True}, "x: expected 32 columns"),
        ({"norm": (torch.ones(15), EPSILON)}, "norm_weight: expected float32"),
        ({"norm": (torch.ones(16, dtype=torch.float64), EPSILON)}, "norm_weight: expected float32"),
        ({"norm": (torch.ones(32), EPSILON), "gated": True, "x": torch.zeros(3, 32)}, "at most one"),
        ({"residual": torch.zeros(2, 24)}, "residual: expected 3 rows of 24"),
        ({"residual": torch.zeros(3, 23)}, "residual: expected 3 rows of 24"),
        ({"residual": torch.zeros(3, 24, dtype=torch.float16)}, "residual"),
        ({"x": torch.zeros(3, 16, dtype=torch.float64)}, "x: expected float32"),
        ({"norm": (torch.ones(16, device="meta"), EPSILON)}, "norm_weight: expected a tensor with memory"),
        ({"residual": torch.zeros(3, 24, device="meta")}, "residual: expected a tensor with memory"),
    ],
)
def test_linear_refuses(changes: dict[str, object], message: str) -> None:
    backend = bittensor.get_backend("cpp")
    arguments: dict[str, object] = {"x": torch.zeros(3, 16), "weight": backend.prepare(weight_of(24, 16, group_size=8))}
    assert backend.fused().linear(**arguments, activation_mode="int8").shape == (3, 24)  # type: ignore[arg-type]
    with pytest.raises((RuntimeError, ValueError), match=message):
        backend.fused().linear(**(arguments | changes), activation_mode="int8")  # type: ignore[arg-type]
    with pytest.raises(bittensor.UnsupportedOperationError, match="int4"):
        backend.fused().linear(**arguments, activation_mode="int4")  # type: ignore[arg-type]
