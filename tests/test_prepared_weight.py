"""The layouts of a `QuantizedWeight`: preparing, restoring, the one copy in memory, and copies of it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch

import bittensor
from bittensor import Backend, PreparedWeight, QuantizedWeight, quantize, use_backend

ZEROS = ("symmetric", "integer", "float")
FORMS = [
    (bits, group_size, zero, dtype)
    for bits, group_size, dtype in [(2, None, torch.float32), (4, 16, torch.float16), (8, 24, torch.bfloat16)]
    for zero in ZEROS
]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = normal(3, 40)


def weight_of(bits: int, group_size: int | None, zero: str, dtype: torch.dtype) -> QuantizedWeight:
    return quantize(normal(21, 40, seed=1), bits, group_size, zero, scale_dtype=dtype)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_prepare_and_restore(backend: Backend, form: tuple[int, int | None, str, torch.dtype]) -> None:
    weight = weight_of(*form)
    prepared = backend.prepare(weight)
    assert isinstance(prepared, PreparedWeight)
    assert (prepared.form, prepared.layout) == (weight.form, backend.capabilities.layout)
    restored = backend.restore(prepared)
    assert restored.form == weight.form
    tensors = weight.tensors()
    assert restored.tensors().keys() == tensors.keys()
    for name, tensor in restored.tensors().items():
        assert torch.equal(tensor, tensors[name]), name
        assert tensor.dtype is tensors[name].dtype


def test_variants_share_one_layout() -> None:
    cpp, weight = bittensor.get_backend("cpp"), weight_of(4, 16, "integer", torch.float16)
    expected = cpp.prepare(weight)
    for name in cpp.capabilities.variants:
        variant = bittensor.get_backend(f"cpp:{name}")
        assert variant.capabilities.layout == cpp.capabilities.layout
        assert torch.equal(variant.prepare(weight).tensors[0], expected.tensors[0])
        assert variant.restore(expected).equal(weight)


@pytest.mark.parametrize("first", ["reference", "cpp"])
@pytest.mark.parametrize("second", ["reference", "cpp"])
def test_what_inference_mode_prepared_can_be_trained_through(first: str, second: str) -> None:
    weight = quantize(normal(16, 128))
    with torch.inference_mode(), use_backend(first):
        bittensor.linear(normal(2, 128), weight)
        assert not weight.words.is_inference()
    x = normal(2, 128).requires_grad_()
    with use_backend(second):
        bittensor.linear(x, weight).sum().backward()
    assert x.grad is not None
    assert x.grad.any()


def test_a_foreign_layout_is_refused() -> None:
    cpp, reference = bittensor.get_backend("cpp"), bittensor.get_backend("reference")
    weight = weight_of(4, 16, "integer", torch.float32)
    for backend, other in ((cpp, reference), (reference, cpp)):
        foreign = other.prepare(weight)
        with pytest.raises(ValueError, match=f"weight: expected the layout .*, got '{foreign.layout}'"):
            backend.linear(X, foreign, None, "int8", None)
        with pytest.raises(ValueError, match="weight: expected the layout"):
            backend.restore(foreign)


def test_a_damaged_blob_is_refused() -> None:
    cpp = bittensor.get_backend("cpp")
    prepared = cpp.prepare(weight_of(4, 16, "integer", torch.float32))
    for blob in (prepared.tensors[0][:-1], prepared.tensors[0][:10], torch.zeros(1000, dtype=torch.uint8)):
        with pytest.raises((ValueError, RuntimeError), match="prepared weight"):
            cpp.linear(X, PreparedWeight(prepared.form, prepared.layout, (blob,)), None, "int8", None)


@pytest.mark.parametrize("zero", ZEROS)
def test_a_weight_is_held_once(zero: str) -> None:
    weight = weight_of(4, 16, zero, torch.float16)
    original, tensors, shown = copy.deepcopy(weight), weight.tensors(), repr(weight)
    with use_backend("cpp"):
        bittensor.linear(X, weight)
    held = weight._held.tensors
    assert len(held) == 1
    assert all(tensor.data_ptr() != held[0].data_ptr() for tensor in tensors.values())
    assert weight.held_nbytes == held[0].numel()
    assert (repr(weight), weight.nbytes) == (shown, original.nbytes)
    assert weight.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    for name, tensor in weight.tensors().items():
        assert torch.equal(tensor, tensors[name]), name
        assert torch.equal(getattr(weight, name), tensors[name]), name
    assert len(weight._held.tensors) == 1, "restoring keeps nothing"
    assert weight.equal(original)
    assert original.equal(weight)
    assert torch.equal(weight.dequantize(), original.dequantize())
    with use_backend("reference"):
        bittensor.linear(X, weight)
    assert [tensor.data_ptr() for tensor in weight._held.tensors] == [
        each.data_ptr() for each in weight.canonical().tensors
    ]
    assert weight.held_nbytes == weight.nbytes
    assert weight.equal(original)


@pytest.mark.parametrize("used", [False, True])
def test_copies_of_a_weight(backend: Backend, used: bool) -> None:
    weight = weight_of(4, 16, "float", torch.float32)
    if used:
        bittensor.linear(X, weight)
    for twin in (copy.copy(weight), copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert twin.equal(weight)
        assert torch.equal(bittensor.linear(X, twin), bittensor.linear(X, weight))
    twin = copy.deepcopy(weight)
    for tensor in twin._held.tensors:
        tensor.zero_()
    assert weight.equal(weight_of(4, 16, "float", torch.float32))
    own, others = weight._held.tensors, copy.copy(weight)._held.tensors
    assert [tensor.data_ptr() for tensor in own] == [tensor.data_ptr() for tensor in others]


def test_groups_whose_sums_could_overflow_are_refused(backend: Backend) -> None:
    weight = QuantizedWeight.from_codes(torch.zeros(1, 65537, dtype=torch.uint8), torch.ones(1, 1), group_size=None)
    for mode in ("int8", "float"):
        with pytest.raises(ValueError, match=r"weight: expected groups of at most 65536 columns, .* got 65537"):
            bittensor.linear(torch.zeros(1, 65537), weight, None, mode)


@pytest.mark.parametrize("zero", [None, 0, 255])
def test_the_largest_group(zero: int | None) -> None:
    """Its integer sums come within 2 % of the ends of int32."""
    codes = torch.full((2, 65536), 255 if zero != 255 else 0, dtype=torch.uint8)
    zeros = None if zero is None else torch.full((2, 1), zero, dtype=torch.uint8)
    weight = QuantizedWeight.from_codes(codes, torch.ones(2, 1), zeros, group_size=None, bits=8)
    x = torch.full((1, 65536), 127.0)
    expected = 127.0 * 65536 * (int(codes[0, 0]) - (128 if zero is None else zero))
    for name in ("reference", "cpp", *(f"cpp:{each}" for each in bittensor.get_backend("cpp").capabilities.variants)):
        with use_backend(name):
            assert bittensor.linear(x, weight).tolist() == [[expected, expected]], name


def test_the_operator_refuses_what_the_contract_refuses() -> None:
    prepare = torch.ops.bittensor_cpp.prepare
    words, scales = torch.zeros(20, 4, dtype=torch.int64), torch.ones(20, 4)
    zeros = torch.full((20, 4), 15, dtype=torch.uint8)
    prepare(words, scales, zeros, None, 64, 4, 16)
    zeros[17, 2] = 16
    with pytest.raises(ValueError, match=r"zeros: expected 0 to 15 \(4 bits\), got 16 in row 17, group 2"):
        prepare(words, scales, zeros, None, 64, 4, 16)
    offsets = torch.zeros(20, 4)
    offsets[18, 1] = float("inf")
    with pytest.raises(ValueError, match="offsets: expected finite values, got NaN or infinity in row 18, group 1"):
        prepare(words, scales, None, offsets, 64, 4, 16)
    with pytest.raises(ValueError, match="scales: expected finite values, got NaN or infinity in row 18, group 1"):
        prepare(words, offsets, None, None, 64, 4, 16)


@pytest.mark.parametrize("rows", [2043, 2056])
def test_a_large_weight_begins_with_a_huge_page(rows: int) -> None:
    weight = quantize(normal(rows, 4096), 4, 128)
    canonical = copy.deepcopy(weight)
    cpp = bittensor.get_backend("cpp")
    prepared = cpp.prepare(weight)
    (tensor,) = prepared.tensors
    assert tensor.data_ptr() % 2**21 == 0
    assert tensor.is_contiguous()
    assert torch.equal(cpp.restore(prepared).words, canonical.words)
    x = normal(3, 4096, seed=1)
    expected = cpp.linear(x, prepared, None, "int8", None)
    for again in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert torch.equal(cpp.linear(x, again, None, "int8", None), expected)


@pytest.mark.parametrize(
    "function",
    [
        lambda weight, x: x @ weight,
        lambda weight, x: weight @ x,
        lambda weight, x: torch.nn.functional.linear(x, weight),
        lambda weight, x: torch.cat([weight, x]),
    ],
)
def test_a_packed_weight_is_no_tensor(function: Callable[[bittensor.QuantizedWeight, torch.Tensor], object]) -> None:
    """Models that multiply by the weight of a layer themselves are told so, and what to do."""
    weight = bittensor.quantize(torch.eye(8), group_size=8)
    with pytest.raises(TypeError, match=r"got a QuantizedWeight, which is packed: .*filter_fn, modules_to_not_convert"):
        function(weight, torch.eye(8))


def test_the_dtype_of_a_weight_is_that_of_its_floats() -> None:
    assert bittensor.quantize(torch.eye(8, dtype=torch.bfloat16), group_size=8).dtype is torch.bfloat16
    assert bittensor.quantize(torch.eye(8), group_size=8, scale_dtype=torch.float16).dtype is torch.float16
