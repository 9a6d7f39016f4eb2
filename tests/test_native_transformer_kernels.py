"""Kernels of a transformer's rows, called by name: normalized, gated, softmax; and the linear that is made of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from bittensor_cpp import _native
from bittensor_reference.epilogues import exp_of_negative, silu
from bittensor_reference.fma import fma
from native_kernels import kernels

import bittensor


def in_halves(values: torch.Tensor, add: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The sum of a row by docs/numerics.md, section 8: 16 partial sums that `add` extends, then halves."""
    sums = torch.zeros(16)
    for part in torch.nn.functional.pad(values, (0, -len(values) % 16)).view(-1, 16):
        sums = add(part, sums)
    for half in (8, 4, 2, 1):
        sums = sums[:half] + sums[half:]
    return sums[0]


COLUMNS = (1, 7, 16, 17, 40, 64, 577)


@kernels("normalize_row")
def test_normalize_row(name: str, bits: int) -> None:
    for columns in COLUMNS:
        generator = torch.Generator().manual_seed(columns)
        weight = torch.randn(columns, generator=generator)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            x = torch.randn(columns, generator=generator).to(dtype)
            out = np.full(columns + 1, 99, dtype=np.float32)
            raw = x.view(torch.uint8).numpy()
            _native.normalize_row(name, raw, columns, str(dtype)[6:], weight.numpy(), 1e-5, out)
            wide = x.float()
            squares = in_halves(wide, lambda part, sums: fma(part, part, sums)).numpy()
            inverse = np.float32(1) / np.sqrt(squares / np.float32(columns) + np.float32(1e-5))
            expected = wide * torch.from_numpy(np.asarray(inverse)) * weight
            np.testing.assert_array_equal(out[:-1], expected.numpy())
            assert out[-1] == 99


@kernels("gate_row")
def test_gate_row(name: str, bits: int) -> None:
    for columns in COLUMNS:
        x = torch.randn(2 * columns, generator=torch.Generator().manual_seed(columns)) * 8
        out = np.full(columns + 1, 99, dtype=np.float32)
        _native.gate_row(name, x.numpy(), columns, "float32", out)
        np.testing.assert_array_equal(out[:-1], (silu(x[:columns]) * x[columns:]).numpy())
        assert out[-1] == 99


@kernels("softmax_row")
def test_softmax_row(name: str, bits: int) -> None:
    for columns in COLUMNS:
        scores = torch.randn(columns, generator=torch.Generator().manual_seed(columns)) * 8
        row = np.full(-(-columns // 16) * 16 + 1, 99, dtype=np.float32)
        row[:columns] = scores.numpy()
        _native.softmax_row(name, row, columns)
        powers = exp_of_negative(scores.max() - scores)
        expected = powers.numpy() * (np.float32(1) / in_halves(powers, torch.add).numpy())
        np.testing.assert_array_equal(row[:columns], expected)
        assert not row[columns:-1].any()
        assert row[-1] == 99
        np.testing.assert_allclose(row[:columns], scores.double().softmax(0).numpy(), rtol=1e-5, atol=1e-30)


@kernels("softmax_row")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_softmax_row_hides_no_broken_score(name: str, bits: int, value: float) -> None:
    for place in (0, 5, 19):
        row = np.linspace(-1, 1, 32, dtype=np.float32)
        row[place] = value
        _native.softmax_row(name, row, 20)
        assert np.isnan(row[:20]).all()


@kernels("softmax_row")
def test_softmax_row_of_scores_that_are_far_apart(name: str, bits: int) -> None:
    row = np.full(16, -3e38, dtype=np.float32)  # its distance to the largest is no finite float32
    row[3] = 3e38
    _native.softmax_row(name, row, 16)
    np.testing.assert_array_equal(row > 0.5, np.arange(16) == 3)
    assert np.isfinite(row).all()


@pytest.mark.parametrize("mode", ["int8", "float"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 37])
@pytest.mark.parametrize("isa", _native.supported_isas())
def test_fused_linear_is_its_parts(isa: str, rows: int, dtype: torch.dtype, mode: str) -> None:
    backend = bittensor.get_backend(f"cpp:{isa}")
    weight = backend.prepare(bittensor.quantize(torch.randn(50, 72), group_size=24))
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 144, generator=generator).to(dtype)[:, :72]  # rows that are apart
    pairs, residual = torch.randn(rows, 144, generator=generator).to(dtype), torch.randn(rows, 50).to(dtype)
    norm = torch.rand(72, generator=generator) + 0.5

    def of_rows(values: torch.Tensor, kernel: str) -> torch.Tensor:
        out = np.zeros((rows, 72), dtype=np.float32)
        for row, result in zip(values.contiguous(), out, strict=True):
            raw, name = row.view(torch.uint8).numpy(), str(dtype).removeprefix("torch.")
            if kernel == "normalize_row":
                _native.normalize_row(f"{kernel}_{isa}", raw, 72, name, norm.numpy(), 1e-5, result)
            else:
                _native.gate_row(f"{kernel}_{isa}", raw, 72, name, result)
        return torch.from_numpy(out)

    def product(values: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        y = backend.linear(values, weight, None, mode, None)
        return (y if added is None else y + added.float()).to(dtype)

    for added in (None, residual):
        fused = backend.fused().linear(x, weight, mode, norm=(norm, 1e-5), residual=added)
        assert torch.equal(fused, product(of_rows(x, "normalize_row"), added))
        fused = backend.fused().linear(pairs, weight, mode, gated=True, residual=added)
        assert torch.equal(fused, product(of_rows(pairs, "gate_row"), added))
        fused = backend.fused().linear(x, weight, mode, residual=added)
        assert torch.equal(fused, product(x.float(), added))
        assert fused.dtype is dtype
