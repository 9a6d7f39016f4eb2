"""`decode`, the layers of a decoder in one call: every kernel path against the operations that it joins."""

from __future__ import annotations

import pytest
import torch
from fused_operands import EPSILON, VARIANTS, weight_of

import bittensor
from bittensor.fused import ComposedOperations, DecoderLayers, cache_shapes, decode_by_layer


class Decoding:
    """Two layers of random weights, random tokens, and an empty cache for each attempt."""

    def __init__(self, heads: int, shared: int, size: int, width: int, hidden: int, tokens: int) -> None:
        generator = torch.Generator().manual_seed(width)
        self.heads, self.shared, self.size, self.tokens = heads, shared, size, tokens
        shapes = [((heads + 2 * shared) * size, width), (width, heads * size), (2 * hidden, width), (width, hidden)]
        self.weights = [[weight_of(*shape, group_size=8, zero="float") for shape in shapes] for _ in range(2)]
        self.norms = torch.rand(2, 2, width, generator=generator) + 0.5
        self.x = torch.randn(tokens, width, generator=generator)
        angles = torch.rand(tokens, size // 2, generator=generator).repeat(1, 2) * 6
        self.rotation = angles.cos(), angles.sin()

    def run(
        self, name: str, mode: str, pieces: list[int], *, by_layer: bool = False, composed: bool = False
    ) -> list[torch.Tensor]:
        """The result for all tokens, which arrive in pieces, and the cache."""
        backend = bittensor.get_backend(name)
        fused = ComposedOperations(backend) if composed else backend.fused()
        weights = tuple(tuple(backend.prepare(weight) for weight in layer) for layer in self.weights)
        layers = DecoderLayers(self.norms, EPSILON, weights, mode)  # type: ignore[arg-type]
        keys, values = (torch.zeros(2, *shape) for shape in cache_shapes(self.shared, self.tokens + 3, self.size))
        outs, start = [], 0
        for count in pieces:
            at = slice(start, start + count)
            rotation = (self.rotation[0][at], self.rotation[1][at])
            arguments = (self.x[at], layers, rotation, keys, values, start, self.heads)
            outs.append(decode_by_layer(fused, *arguments) if by_layer else fused.decode(*arguments))
            start += count
        return [torch.cat(outs), keys, values]


DECODINGS = [Decoding(1, 1, 8, 16, 8, 1), Decoding(6, 2, 16, 48, 72, 21), Decoding(4, 1, 8, 40, 80, 19)]


@pytest.mark.parametrize("mode", ["int8", "float"])
@pytest.mark.parametrize("case", DECODINGS, ids=lambda case: f"{case.heads}x{case.size}")
def test_layers_have_the_bits_of_their_operations_everywhere(case: Decoding, mode: str, one_thread: None) -> None:
    tokens = case.tokens
    expected = case.run("cpp:scalar", mode, [tokens], by_layer=True)
    for variant in VARIANTS:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for pieces in ([tokens], [1] * tokens, [tokens // 2, tokens - tokens // 2]):
                if 0 in pieces:
                    continue
                for actual, wanted in zip(case.run(variant, mode, pieces), expected, strict=True):
                    assert torch.equal(actual, wanted), (variant, threads, pieces)


@pytest.mark.parametrize("case", DECODINGS, ids=lambda case: f"{case.heads}x{case.size}")
def test_layers_are_near_their_composition(case: Decoding) -> None:
    expected = case.run("reference", "float", [case.tokens], composed=True)
    for actual, wanted in zip(case.run("cpp", "float", [case.tokens]), expected, strict=True):
        assert (actual - wanted).abs().max() <= 2e-5 * wanted.abs().max()


def decoder_layers(**changes: object) -> torch.Tensor:
    backend = bittensor.get_backend("cpp")
    shapes = [(64, 16), (16, 32), (48, 16), (16, 24)]
    weights = [backend.prepare(weight_of(*shape, group_size=8)).tensors[0] for shape in shapes] * 2
    keys, values = (torch.zeros(2, *shape) for shape in cache_shapes(2, 10, 8))
    for index, replaced in enumerate(shapes):
        if f"weight_{index}" in changes:
            shape = changes.pop(f"weight_{index}") or replaced
            weights[4 + index] = backend.prepare(weight_of(*shape, group_size=8)).tensors[0]  # type: ignore[misc]
    arguments: dict[str, object] = {
        "x": torch.zeros(3, 16),
        "norms": torch.zeros(2, 2, 16),
        "weights": weights,
        "norm_epsilon": EPSILON,
        "cos": torch.zeros(3, 8),
        "sin": torch.zeros(3, 8),
        "keys": keys,
        "values": values,
        "position": 0,
        "heads": 4,
        **changes,
    }
    return torch.ops.bittensor_cpp.decoder_layers.default(*arguments.values())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(3, 16, dtype=torch.float64)}, "x: expected float32"),
        ({"x": torch.zeros(0, 16)}, "at least one token"),
        ({"x": torch.zeros(1, 3, 16)}, "x: expected float32"),
        ({"norms": torch.zeros(2, 2, 15)}, "norms: expected float32"),
        ({"norms": torch.zeros(3, 2, 16)}, "norms: expected float32"),
        ({"weights": [torch.zeros(0)]}, "weights: expected four"),
        ({"weights": [torch.zeros(64, dtype=torch.uint8)] * 8}, "prepared"),
        ({"cos": torch.zeros(2, 8)}, "cos, sin"),
        ({"keys": torch.zeros(2, 2, 1, 8, 32)}, "keys, values"),
        ({"keys": torch.zeros(3, 2, 1, 8, 64)}, "keys, values: expected 2 layers"),
        ({"values": torch.zeros(2, 10, 16)}, "values: expected contiguous"),
        ({"position": 8}, "position: 3 tokens from 8 on"),
        ({"norms": torch.zeros(2, 2, 16, device="meta")}, "norms: expected a tensor with memory"),
        ({"heads": 2}, r"query_key_value: expected a weight \[48, 16\], got \[64, 16\]"),
        ({"weight_0": (63, 16)}, "query_key_value"),
        ({"weight_1": (16, 24)}, "output"),
        ({"weight_2": (47, 16)}, "gate_up: expected an even number"),
        ({"weight_2": (48, 8)}, r"gate_up: expected a weight \[any, 16\]"),
        ({"weight_3": (16, 48)}, "down"),
        ({"weight_3": (8, 24)}, "down"),
    ],
)
def test_layers_refuse(changes: dict[str, object], message: str) -> None:
    assert decoder_layers().shape == (3, 16)
    with pytest.raises((RuntimeError, ValueError), match=message):
        decoder_layers(**changes)


def test_layers_without_a_mode() -> None:
    with pytest.raises(bittensor.errors.UnsupportedOperationError, match="activation_mode: expected one of"):
        DECODINGS[0].run("cpp", "int4", [1])
