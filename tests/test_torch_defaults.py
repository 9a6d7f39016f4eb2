"""No result depends on torch's default dtype or device, which loaders of models set to those of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llama import CONFIG, write_tiny_llama

import bittensor
from bittensor import Backend, QuantizeConfig, QuantizedLinear
from bittensor.checkpoints import open_checkpoint, quantize_checkpoint, save_checkpoint
from bittensor.models import Sampling, generate
from bittensor.models.llama import load_llama
from bittensor.nn import FakeQuantizedLinear, QuantizedConv2d, QuantizedEmbedding

Results = list[torch.Tensor]


@contextmanager
def default(chosen: torch.dtype | torch.device) -> Iterator[None]:
    if isinstance(chosen, torch.device):
        with chosen:
            yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(chosen)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


DEFAULTS = (torch.float64, torch.bfloat16, torch.device("meta"))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")


def dense() -> torch.nn.Linear:
    linear = torch.nn.Linear(96, 24, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        linear.weight.copy_(normal(24, 96)), linear.bias.copy_(normal(24))  # type: ignore[func-returns-value]
    return linear


def quantized() -> Results:
    results = []
    for method in ("rtn", "mse", "hqq"):
        for zero in ("symmetric", "integer", "float"):
            weight = bittensor.quantize(normal(24, 96), bits=4, group_size=32, zero=zero, method=method)
            results += [weight.words, weight.scales, weight.dequantize(), weight.dequantize(torch.float16)]
    return results


def linears() -> Results:
    results = []
    for zero in ("symmetric", "integer", "float"):
        weight = bittensor.quantize(normal(24, 96), bits=4, group_size=32, zero=zero)
        for mode in ("int8", "float"):
            for epilogue in (None, "relu", "gelu", "silu"):
                x, bias = normal(5, 96).requires_grad_(), normal(24).requires_grad_()
                y = bittensor.linear(x, weight, bias, mode, epilogue)
                y.square().sum().backward()
                assert x.grad is not None
                assert bias.grad is not None
                results += [y.detach(), x.grad, bias.grad]
    return results


def layers() -> Results:
    convolution = torch.nn.Conv2d(8, 8, 3, dtype=torch.float32, device="cpu")
    embedding = torch.nn.Embedding(24, 96, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        convolution.weight.copy_(normal(8, 8, 3, 3)), embedding.weight.copy_(normal(24, 96))  # type: ignore[func-returns-value]
        convolution.bias.zero_()  # type: ignore[union-attr]
    codes = torch.arange(96, dtype=torch.uint8, device="cpu").view(2, 48) % 16
    fake = FakeQuantizedLinear.from_linear(dense(), group_size=32, zero="float")
    y = fake(normal(3, 96))
    y.square().sum().backward()
    return [
        QuantizedLinear.from_linear(dense(), group_size=32)(normal(3, 96)),
        QuantizedConv2d.from_conv(convolution, bits=4, group_size=None)(normal(2, 8, 6, 6)),
        QuantizedEmbedding.from_embedding(embedding, group_size=32)(torch.tensor([1, 0], device="cpu")),
        bittensor.packed_matmul(codes, bittensor.pack_weights(codes), scale=0.01),
        y.detach(),
        *(each.grad for each in fake.parameters() if each.grad is not None),
    ]


def calibrated() -> Results:
    results = []
    for method in ("gptq", "awq-scale"):
        model = torch.nn.Sequential(dense(), torch.nn.ReLU())
        bittensor.calibrate(model, [normal(64, 96)], QuantizeConfig(2, 32), method=method)
        results += [model(normal(3, 96)), *model.state_dict().values()]
    return results


@pytest.mark.parametrize("chosen", DEFAULTS, ids=str)
@pytest.mark.parametrize("compute", [quantized, linears, layers, calibrated])
def test_operations_and_layers(compute: Callable[[], Results], chosen: Any, backend: Backend) -> None:
    expected = compute()
    with default(chosen):
        results = compute()
    for i, (result, wanted) in enumerate(zip(results, expected, strict=True)):
        assert result.dtype is wanted.dtype, i
        assert torch.equal(result, wanted), i


@pytest.mark.parametrize("chosen", DEFAULTS, ids=str)
def test_a_language_model(chosen: Any, tmp_path: Path, backend: Backend) -> None:
    folder = write_tiny_llama(tmp_path / "tiny")

    def tokens(name: str) -> list[Any]:
        config = QuantizeConfig(bits=4, group_size=32)
        save_checkpoint(tmp_path / name, quantize_checkpoint(open_checkpoint(folder), config, skip=()).tensors, CONFIG)
        taken: list[Any] = []
        for path in (folder, tmp_path / name):
            model = load_llama(open_checkpoint(path))
            taken += [list(generate(model, [3, 5, 8], 8))]
            taken += [list(generate(model, [3, 5, 8], 8, Sampling(temperature=1.0, top_p=0.9, seed=1)))]
        return taken

    expected = tokens("packed")
    with default(chosen):
        assert tokens("packed-again") == expected
