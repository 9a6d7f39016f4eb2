"""The adapters compute what they are given, within the contract's bounds."""

from __future__ import annotations

from itertools import product

import pytest
from bittensor_conformance.float_fills import FloatFill
from bittensor_conformance.linear_cases import LinearCase
from bittensor_conformance.linear_strategies import FLOAT_DTYPES, scope

import bittensor

NEEDS = {"torch_int4": "torch", "torch_int4_native": "torch", "onnxruntime": "onnxruntime", "openvino": "openvino"}


@pytest.mark.parametrize("name", NEEDS)
def test_adapter_computes_what_it_declares(name: str) -> None:
    pytest.importorskip(NEEDS[name], reason="pip install 'packed-bittensor[rivals]'")
    declared = bittensor.get_backend(name).capabilities
    within = scope(declared)
    kinds = product(sorted(declared.linear_bits), within.zeros, within.scale_dtypes, sorted(declared.activation_modes))
    for i, (bits, zero, scale_dtype, mode) in enumerate(kinds):
        n, k, size, m = ((17, 200, 64, 1), (48, 96, 32, 5), (3, 40, None, 3))[i % 3]
        weight = within.weight(bits, n, k, size, zero, scale_dtype)
        case = LinearCase(weight, (m,), mode, x_dtype=FLOAT_DTYPES[i // 3 % 3], bias=FloatFill() if i % 2 else None)
        case.run(name)
    assert i >= 2
