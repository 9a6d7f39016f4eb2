"""`PackedLinear` as a module: buffers, saving, copying, printing."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

import bittensor
from bittensor import Backend, PackedLinear

WEIGHT = torch.randint(0, 16, (6, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
X = torch.randint(0, 16, (4, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
BIAS = torch.tensor([-300, -20, 0, 20, 300, 100_000], dtype=torch.int32)


@pytest.fixture
def layer(backend: Backend) -> PackedLinear:
    return PackedLinear(WEIGHT, BIAS, x_zero=3, weight_zero=7, scale=0.05, out_zero=4)


def test_matches_packed_matmul(layer: PackedLinear) -> None:
    packed = bittensor.pack_weights(WEIGHT)
    expected = bittensor.packed_matmul(X, packed, BIAS, x_zero=3, weight_zero=7, scale=0.05, out_zero=4)
    assert torch.equal(layer(X), expected)
    codes = bittensor.unpack_tensor(expected, 4, 6)
    assert len(set(codes.flatten().tolist())) > 2, "the example must not be saturated throughout"


def test_takes_packed_input(layer: PackedLinear) -> None:
    assert torch.equal(layer(bittensor.pack_weights(X)), layer(X))


def test_sequential(backend: Backend) -> None:
    second = torch.randint(0, 16, (3, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    network = torch.nn.Sequential(PackedLinear(WEIGHT, scale=0.01), PackedLinear(second, out_dtype=torch.int32))
    hidden = bittensor.unpack_tensor(network[0](X), 4, 6)
    assert torch.equal(network(X), (hidden.long() @ second.long().T).int())


def test_tensors_are_buffers(layer: PackedLinear) -> None:
    buffers = dict(layer.named_buffers())
    assert set(buffers) == {"packed_weight", "bias", "scale"}
    assert (buffers["packed_weight"].dtype, buffers["packed_weight"].shape) == (torch.int64, (6, 2))
    assert not list(layer.parameters())


def test_absent_tensors_are_not_saved(backend: Backend) -> None:
    assert set(PackedLinear(WEIGHT).state_dict()) == {"packed_weight"}


def test_state_dict_round_trip(layer: PackedLinear) -> None:
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    blank = PackedLinear(
        torch.zeros_like(WEIGHT), torch.zeros_like(BIAS), x_zero=3, weight_zero=7, scale=1.0, out_zero=4
    )
    assert not torch.equal(blank(X), layer(X))
    blank.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(blank(X), layer(X))


@pytest.mark.parametrize("other", ["reference", "cpp"])
def test_state_dict_does_not_depend_on_the_backend(layer: PackedLinear, other: str) -> None:
    with bittensor.use_backend(other):
        twin = PackedLinear(WEIGHT, BIAS, x_zero=3, weight_zero=7, scale=0.05, out_zero=4)
        assert torch.equal(twin(X), layer(X))
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name]), name


def test_deepcopy_is_independent(layer: PackedLinear) -> None:
    before = layer(X)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(X), before)
    twin.packed_weight.zero_()
    assert torch.equal(layer(X), before)


def test_pickle(layer: PackedLinear) -> None:
    assert torch.equal(pickle.loads(pickle.dumps(layer))(X), layer(X))


def test_repr(layer: PackedLinear) -> None:
    assert repr(layer).startswith("PackedLinear(in_features=20, out_features=6, bits=4, bias=True")
    assert "bits=2, bias=False" in repr(PackedLinear(WEIGHT % 4, bits=2))


def test_refuses_weights_that_are_no_matrix(backend: Backend) -> None:
    with pytest.raises(ValueError, match=r"weight: expected uint8 \[out_features, in_features\], got shape \[20\]"):
        PackedLinear(WEIGHT[0])
    with pytest.raises(TypeError, match=r"expected uint8 .* got list"):
        PackedLinear([[1, 2]])  # type: ignore[arg-type]


def test_refuses_other_in_features(layer: PackedLinear) -> None:
    with pytest.raises(ValueError, match="x: expected 20 codes a row"):
        layer(X[:, :16])
