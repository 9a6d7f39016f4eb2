"""`embedding` and `QuantizedEmbedding`: rows of a packed table, and a head that shares it."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

import bittensor
from bittensor import Backend, QuantizedLinear, UnsupportedOperationError, get_backend, quantize, use_backend
from bittensor.nn import QuantizedEmbedding

CPP = ["cpp", *(f"cpp:{variant}" for variant in get_backend("cpp").capabilities.variants)]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TABLE = normal(21, 40)
INDICES = torch.tensor([[3, 0, 20], [3, 17, 9]])


class Tied(torch.nn.Module):
    """A language model without anything between its embedding and its head."""

    def __init__(self, embedding: torch.nn.Module, head: torch.nn.Module) -> None:
        super().__init__()
        self.embedding, self.head = embedding, head

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(tokens))


def tied(seed: int = 0) -> Tied:
    weight = quantize(normal(21, 40, seed=seed), group_size=16)
    return Tied(QuantizedEmbedding(weight, padding_idx=0), QuantizedLinear(weight))


@pytest.mark.parametrize("zero", ["symmetric", "integer", "float"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_instruction_set_gives_the_dequantized_rows(bits: int, zero: str) -> None:
    for (n, k, size), scale_dtype in product(((17, 41, 16), (33, 72, 24), (5, 9, None)), DTYPES):
        weight = quantize(normal(n, k, seed=n), bits, size, zero, scale_dtype=scale_dtype)
        indices = torch.randint(0, n, (2, 19), generator=torch.Generator().manual_seed(1))
        for name, dtype in product(["reference", *CPP], DTYPES):
            with use_backend(name):
                rows = bittensor.embedding(indices, weight, dtype)
                assert rows.dtype is dtype
                assert torch.equal(rows, weight.dequantize(dtype)[indices]), name


def test_shapes_and_dtypes_of_indices(backend: Backend) -> None:
    weight = quantize(TABLE, group_size=16)
    expected = weight.dequantize()
    strided = torch.randint(0, 21, (4, 6)).T[::2]
    given = (torch.tensor(5), INDICES[:0], INDICES, INDICES.int(), strided, INDICES[None, :, :1])
    for indices in given:
        rows = bittensor.embedding(indices, weight)
        assert rows.is_contiguous()
        assert torch.equal(rows, expected[indices.long()])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((INDICES, TABLE), TypeError, "weight: expected a QuantizedWeight, got Tensor"),
        ((INDICES.float(), None), TypeError, r"indices: expected int64 or int32, got float32 \[2, 3\]"),
        ((INDICES.bool(), None), TypeError, "indices: expected int64 or int32, got bool"),
        (([1, 2], None), TypeError, "indices: expected an int64 or int32 tensor, got list"),
        (
            (INDICES.to("meta"), None),
            ValueError,
            "indices: expected a tensor on cpu .*, got one on meta",
        ),
        ((torch.tensor([3, 21]), None), ValueError, r"indices: expected rows of the weight, 0\.\.20, got 21"),
        ((torch.tensor([3, -1], dtype=torch.int32), None), ValueError, r"0\.\.20, got -1"),
        ((torch.tensor(2**40), None), ValueError, r"0\.\.20, got 1099511627776"),
        ((INDICES, None, torch.float64), TypeError, "dtype: expected float16, bfloat16 or float32, got torch.float64"),
    ],
)
def test_refusals(backend: Backend, arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    weight = quantize(TABLE, group_size=16)
    with pytest.raises(error, match=message):
        bittensor.embedding(*(weight if each is None else each for each in arguments))
    with pytest.raises(ValueError, match="weight: expected one on cpu"):
        bittensor.embedding(INDICES, weight.to("meta"))


def test_what_a_backend_may_leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, backend = quantize(TABLE, group_size=16), get_backend("reference")
    operations = backend.capabilities.operations
    monkeypatch.setattr(backend, "capabilities", replace(backend.capabilities, operations=operations - {"embedding"}))
    with use_backend("reference"):
        for indices in (INDICES, INDICES[:0]):
            assert torch.equal(bittensor.embedding(indices, weight), weight.dequantize()[indices])
    # A backend that checks its arguments can do so only where it is called.
    checking = replace(backend.capabilities, checks_arguments=True)
    monkeypatch.setattr(backend, "capabilities", checking)
    with use_backend("reference"), pytest.raises(ValueError, match="-1"):
        bittensor.embedding(torch.tensor([0, -1]), weight)
    little = replace(backend.capabilities, linear_bits=frozenset({8}))
    monkeypatch.setattr(backend, "capabilities", little)
    with use_backend("reference"), pytest.raises(UnsupportedOperationError, match="does not declare bits=4"):
        bittensor.embedding(INDICES, weight)


@pytest.mark.parametrize("number", [5, 6, 15])  # which torch's operators take for dtypes
def test_a_dtype_is_no_number(backend: Backend, number: Any) -> None:
    with pytest.raises(TypeError, match=f"dtype: expected .*, got {number}"):
        bittensor.embedding(INDICES, quantize(TABLE, group_size=16), number)


def test_the_module(backend: Backend) -> None:
    source = torch.nn.Embedding(21, 40, padding_idx=-1)
    layer = QuantizedEmbedding.from_embedding(source.eval(), bits=8, group_size=8)
    assert (layer.num_embeddings, layer.embedding_dim, layer.padding_idx, layer.training) == (21, 40, 20, False)
    assert torch.equal(layer(INDICES), quantize(source.weight, 8, 8).dequantize()[INDICES])
    assert torch.allclose(layer(INDICES), source(INDICES), atol=0.02)
    assert not layer(torch.tensor(20)).any(), "padding is 0 in the table, and stays so"
    assert not layer(INDICES).requires_grad
    assert list(layer.parameters()) == []
    assert layer(INDICES).dtype is torch.float32
    assert layer.bfloat16()(INDICES).dtype is torch.bfloat16
    assert QuantizedEmbedding.from_embedding(source.half(), group_size=8)(INDICES).dtype is torch.float16
    with pytest.raises(ValueError, match="has max_norm=1"):
        QuantizedEmbedding.from_embedding(torch.nn.Embedding(8, 8, max_norm=1))
    with pytest.raises(ValueError, match="padding_idx: expected one of the 21 rows, got 21"):
        QuantizedEmbedding(layer.weight, 21)
    with pytest.raises(TypeError, match="weight: expected a QuantizedWeight"):
        QuantizedEmbedding(TABLE)
    with pytest.raises(TypeError, match="either a config or its settings"):
        QuantizedEmbedding.from_embedding(source, bittensor.QuantizeConfig(), bits=4)


def test_a_dtype_that_no_call_takes_leaves_no_model_in_between(backend: Backend) -> None:
    model = torch.nn.Sequential(QuantizedEmbedding(quantize(TABLE, group_size=16)), torch.nn.Linear(40, 4))
    expected = model(INDICES)
    assert model.double()[1].weight.dtype is torch.float64, "the layer after the embedding too"
    with pytest.raises(TypeError, match=r"dtype: expected float16, bfloat16 or float32, got torch.float64"):
        model(INDICES)
    assert torch.equal(model.float()(INDICES), expected)


def test_state_dict(backend: Backend) -> None:
    layer, other = (QuantizedEmbedding(quantize(normal(21, 40, seed=i), group_size=16, zero="integer")) for i in (0, 1))
    assert set(layer.state_dict()) == {"words", "scales", "zeros", "form"}
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(INDICES), layer(INDICES))
    with pytest.raises(RuntimeError, match="form: the layer has out_features=22"):
        QuantizedEmbedding(quantize(normal(22, 40), group_size=16, zero="integer")).load_state_dict(layer.state_dict())


def test_a_tied_head_shares_one_copy(backend: Backend) -> None:
    model = tied()
    expected = bittensor.linear(model.embedding.weight.dequantize()[INDICES], model.head.weight)
    assert torch.equal(model(INDICES), expected)
    assert model.embedding.weight is model.head.weight
    held = model.head.weight._held.tensors
    model(INDICES)
    assert all(one is other for one, other in zip(model.embedding.weight._held.tensors, held, strict=True))
    assert sum(each.nbytes for each in held) == model.head.weight.held_nbytes


def test_what_is_shared_stays_shared(backend: Backend) -> None:
    model, source = tied(0), tied(1)
    expected = source(INDICES)
    model.load_state_dict(source.state_dict())
    for each in (model, copy.deepcopy(source), pickle.loads(pickle.dumps(source)), source.to("cpu")):
        assert each.embedding.weight is each.head.weight
        assert torch.equal(each(INDICES), expected)
    model = tied(0)
    model.load_state_dict(source.state_dict(), assign=True)
    assert model.embedding.weight is model.head.weight
    assert torch.equal(model(INDICES), expected)
    meta = copy.deepcopy(model).to("meta")
    assert meta.embedding.weight is meta.head.weight
    assert meta.head.weight.device.type == "meta"


def test_what_is_shared_is_saved_once(backend: Backend) -> None:
    model = tied()
    model(INDICES)
    state = model.state_dict()
    for name in ("words", "scales"):
        assert state[f"embedding.{name}"] is state[f"head.{name}"]
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file)
    for name in ("words", "scales"):
        assert loaded[f"embedding.{name}"].data_ptr() == loaded[f"head.{name}"].data_ptr()


def test_traces(backend: Backend) -> None:
    torch._dynamo.reset()
    model = tied()
    for mark in (False, True):
        program = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=mark)
        assert torch.equal(program(INDICES), model(INDICES))
    exported = torch.export.export(model, (INDICES,))
    assert torch.equal(exported.module()(INDICES), model(INDICES))
    torch._dynamo.reset()


def test_direct_calls_are_checked() -> None:
    backend = get_backend("cpp")
    prepared = backend.prepare(quantize(TABLE, group_size=16))
    with pytest.raises(ValueError, match="layout"):
        backend.embedding(INDICES, replace(prepared, layout="another"), torch.float32)
    with pytest.raises(ValueError, match="columns: the prepared weight has another number"):
        torch.ops.bittensor_cpp.embedding(INDICES, prepared.tensors[0], 41)
