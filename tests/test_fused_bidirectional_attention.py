"""`attend_bidirectional`: every kernel path against its composition, and sequences against one another."""

from __future__ import annotations

import pytest
import torch
from fused_operands import SEQUENCES, VARIANTS, Sequences

sequences = pytest.mark.parametrize("case", SEQUENCES, ids=lambda case: f"{case.query.shape[1]}x{case.query.shape[3]}")


@sequences
def test_bidirectional_attention_is_near_its_composition(case: Sequences) -> None:
    for mask in (case.mask, None):
        if mask is None and 0 in case.lengths:
            continue
        actual = case.run("cpp", key_mask=mask)
        assert torch.allclose(actual, case.run("reference", key_mask=mask), atol=1e-5)
    expected = torch.nn.functional.scaled_dot_product_attention(
        case.query, case.key, case.value, case.mask[:, None, None], scale=0.3, enable_gqa=True
    )
    for result, wanted, length in zip(case.run("reference"), expected, case.lengths, strict=True):
        wanted = wanted.transpose(0, 1).flatten(1)
        assert torch.allclose(result, wanted if length else torch.zeros_like(wanted), atol=1e-5)


@sequences
def test_bidirectional_attention_has_the_same_bits_everywhere(case: Sequences, one_thread: None) -> None:
    expected = case.run("cpp:scalar")
    for variant in VARIANTS:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(case.run(variant), expected), (variant, threads)
        contiguous = {name: getattr(case, name).contiguous() for name in ("query", "key", "value")}
        assert torch.equal(case.run(variant, **contiguous), expected), variant
        reversed_values = case.value.transpose(2, 3).contiguous().transpose(2, 3)
        assert torch.equal(case.run(variant, value=reversed_values), expected), variant


@sequences
def test_a_sequence_is_attended_alike_in_any_batch(case: Sequences) -> None:
    together = case.run("cpp")
    for i, length in enumerate(case.lengths):
        alone = case.run(
            "cpp",
            query=case.query[i : i + 1],
            key=case.key[i : i + 1, :, :length],
            value=case.value[i : i + 1, :, :length],
            key_mask=None,
        )
        assert torch.equal(alone[0], together[i])
        tokens = case.query.shape[2]
        for token in range(0, tokens, 7):
            one = case.run("cpp", query=case.query[:, :, token : token + 1])
            assert torch.equal(one[:, 0], together[:, token])


def test_a_broken_sequence_reaches_no_other() -> None:
    case = SEQUENCES[1]
    expected = case.run("cpp")
    value = case.value.clone()
    value[0, 0, 5, 0], value[2, :, 41:] = float("nan"), float("inf")  # the second behind the end
    actual = case.run("cpp", value=value)
    assert actual[0].isnan().sum() == 55
    assert torch.equal(actual[1:], expected[1:])
    key = case.key.clone()
    key[0, 0, 5, 0] = float("nan")
    assert case.run("cpp", key=key)[0, :, :32].isnan().all()


def attend_bidirectional(**changes: object) -> torch.Tensor:
    arguments: dict[str, object] = {
        "query": torch.zeros(2, 4, 3, 8),
        "key": torch.zeros(2, 2, 5, 8),
        "value": torch.zeros(2, 2, 5, 8),
        "key_mask": None,
        "scale": 1.0,
        **changes,
    }
    return torch.ops.bittensor_cpp.attend_bidirectional.default(*arguments.values())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": torch.zeros(2, 3, 3, 8)}, "key: expected .* heads that divide"),
        ({"query": torch.zeros(1, 4, 3, 8)}, "key: expected"),
        ({"query": torch.zeros(2, 4, 3, 9)}, "key: expected"),
        ({"query": torch.zeros(2, 0, 3, 8)}, "at least one head"),
        ({"query": torch.zeros(2, 4, 3, 0)}, "at least one head"),
        ({"query": torch.zeros(2, 4, 24)}, "query: expected float32"),
        ({"query": torch.zeros(2, 4, 3, 8, dtype=torch.bfloat16)}, "query: expected float32"),
        ({"query": torch.zeros(2, 4, 3, 8, device="meta")}, "query: expected a tensor with memory"),
        ({"key": torch.zeros(2, 0, 5, 8)}, "key: expected"),
        ({"key": torch.zeros(2, 2, 4, 8)}, "value: expected the shape of the key"),
        ({"value": torch.zeros(2, 2, 5, 7)}, "value: expected the shape of the key"),
        ({"value": torch.zeros(2, 2, 5)}, "value: expected float32"),
        ({"key_mask": torch.ones(2, 4, dtype=torch.bool)}, r"key_mask: expected bool \[2, 5\]"),
        ({"key_mask": torch.ones(1, 5, dtype=torch.bool)}, "key_mask"),
        ({"key_mask": torch.ones(2, 1, 5, dtype=torch.bool)}, "key_mask"),
        ({"key_mask": torch.ones(2, 5)}, "key_mask"),
    ],
)
def test_bidirectional_attention_refuses(changes: dict[str, object], message: str) -> None:
    assert attend_bidirectional().shape == (2, 3, 32)
    with pytest.raises((RuntimeError, ValueError), match=message):
        attend_bidirectional(**changes)


@pytest.mark.parametrize("shape", [(0, 4, 3, 8), (2, 4, 0, 8)])
def test_bidirectional_attention_of_nothing(shape: tuple[int, ...]) -> None:
    keys = torch.zeros(shape[0], 2, 5, 8)
    assert attend_bidirectional(query=torch.zeros(shape), key=keys, value=keys).shape == (shape[0], shape[2], 32)
    many = torch.zeros(1, 1, 0, 4).expand(2**62, 1, 0, 4)
    assert torch.ops.bittensor_cpp.attend_bidirectional(many, many, many, None, 1.0).shape == (2**62, 0, 4)
    no_keys = torch.zeros(2, 2, 0, 8)
    assert attend_bidirectional(key=no_keys, value=no_keys).eq(0).all()
