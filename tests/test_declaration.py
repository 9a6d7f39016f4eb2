"""What a backend says about itself, and what BitTensor does for one that says little."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_backends import Fake, FakeEntryPoint, WithVariants, replace_installed

import bittensor
from bittensor import BackendLoadError, Capabilities

Load = Callable[[Callable[[], Any]], None]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, registry_state: None) -> Load:
    """Install a backend as "mine", and load it."""

    def load(factory: Callable[[], Any]) -> None:
        replace_installed(monkeypatch, {"mine": FakeEntryPoint(factory)}, default="mine")
        bittensor.get_backend("mine")

    return load


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": {3, 4}}, r"declares unknown bits \[3\]; known: \[1, 2, 4, 8\]"),
        ({"bits": 4}, "capabilities.bits: expected a frozenset, got int"),
        ({"epilogues": {None, "Relu"}}, r"declares unknown epilogues \['Relu'\]"),
        ({"scale_dtypes": {"float16"}}, r"declares unknown scale_dtypes \['float16'\]"),
        ({"zero_kinds": "float"}, "capabilities.zero_kinds: expected a frozenset, got str"),
        ({"variants": "fast"}, "capabilities.variants: expected a tuple of names, got 'fast'"),
        ({"variants": ("a", "a")}, "repeats a name"),
        ({"group_size_multiple": 12}, "expected a multiple of 8, got 12"),
        ({"numerics": "nearly"}, "expected 'exact' or 'bounded', got 'nearly'"),
        ({"layout": ""}, "expected the name of a layout, got ''"),
    ],
)
def test_declarations_that_mean_nothing(load: Load, changes: dict[str, Any], message: str) -> None:
    class Odd(Fake):
        capabilities = Capabilities(**changes)

    with pytest.raises(BackendLoadError, match=message):
        load(Odd)


def test_a_declaration_of_another_type(load: Load) -> None:
    class Mapped(Fake):
        capabilities: Any = {"operations": ["pack"]}  # noqa: RUF012

    with pytest.raises(BackendLoadError, match=r"capabilities: expected a bittensor\.Capabilities, got dict"):
        load(Mapped)


def test_an_operation_that_is_declared_and_forgotten(load: Load) -> None:
    class Forgetful(bittensor.Backend):
        name = "forgetful"
        protocol_version = bittensor.PROTOCOL_VERSION
        capabilities = Capabilities(operations=frozenset({"pack", "unpack"}))

        def pack(self, codes: torch.Tensor, bits: int) -> torch.Tensor:
            return codes

    with pytest.raises(BackendLoadError, match="lacks unpack;"):
        load(Forgetful)


def test_a_variant_is_checked_too(load: Load) -> None:
    class Empty(WithVariants):
        def variant(self, name: str) -> Any:
            return None

    load(Empty)
    with pytest.raises(BackendLoadError, match=r"'mine:slow': protocol_version: .* got None"):
        bittensor.get_backend("mine:slow")


def test_what_a_backend_does_not_pack_is_packed_in_plain_torch(load: Load) -> None:
    """Values, rows and gradients of a weight need no more than the operations on weights."""
    weight, x = torch.randn(16, 40), torch.randn(3, 40)

    def results(name: str) -> list[torch.Tensor | None]:
        with bittensor.use_backend(name):
            quantized = bittensor.quantize(weight, group_size=8, zero="integer")
            leaf = x.clone().requires_grad_()
            bittensor.linear(leaf, quantized).sum().backward()
            return [quantized.dequantize(), bittensor.embedding(torch.tensor([3]), quantized), leaf.grad]

    reference = bittensor.get_backend("reference")
    expected = results("reference")

    class OnWeights(bittensor.Backend):
        name = "mine"
        protocol_version = bittensor.PROTOCOL_VERSION
        capabilities = Capabilities(operations=frozenset({"prepare", "restore", "linear"}))
        prepare, restore, linear = reference.prepare, reference.restore, reference.linear

    load(OnWeights)
    for mine, theirs in zip(results("mine"), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
