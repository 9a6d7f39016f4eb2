"""`feed_forward` of the operations of transformers: every kernel path against the two linears that it joins."""

from __future__ import annotations

import pytest
import torch
from fused_operands import VARIANTS, weight_of

import bittensor
from bittensor.fused import ComposedOperations
from bittensor.nn import FeedForwardDown, FeedForwardUp

NETWORKS = [
    # columns, hidden values, outputs, group size of the second weight, bits, zeros, epilogue
    (64, 96, 40, 32, 4, "float", "gelu"),
    (33, 50, 24, 8, 2, "integer", "relu"),
    (70, 100, 33, 100, 8, "symmetric", "silu"),
    (48, 200, 16, 24, 4, "integer", None),
    (64, 512, 32, 512, 4, "symmetric", "gelu"),  # a group that is too large to join the two
    (32, 2048, 48, 64, 2, "float", "silu"),  # rows that take several panels
]
"""Feed-forward networks."""


@pytest.mark.parametrize("mode", ["int8", "float"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: f"{network[1]} hidden")
def test_feed_forward_has_the_bits_of_its_linears_everywhere(
    network: tuple[int, int, int, int, int, str, str | None], mode: str, one_thread: None
) -> None:
    columns, hidden, outputs, group, bits, zero, epilogue = network
    up = weight_of(hidden, columns, bits=bits, group_size=min(group, columns), zero=zero)
    down = weight_of(outputs, hidden, bits=bits, group_size=group, zero=zero)
    for rows in (0, 1, 7, 33, 300):
        x, up_bias, down_bias = torch.randn(rows, columns), torch.randn(hidden), torch.randn(outputs).half()
        scalar = bittensor.get_backend("cpp:scalar")
        rest = (scalar.prepare(up), up_bias, epilogue, scalar.prepare(down), down_bias, mode)
        expected = ComposedOperations(scalar).feed_forward(x, *rest)
        for variant in VARIANTS:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                actual = bittensor.get_backend(variant).fused().feed_forward(x, *rest)
                assert torch.equal(actual, expected), (variant, threads, rows)


@pytest.mark.parametrize("name", ["cpp", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_feed_forward_is_one_linear_after_the_other(name: str, dtype: torch.dtype) -> None:
    up, down = weight_of(96, 64, group_size=32), weight_of(40, 96, group_size=24, zero="float")
    backend, x = bittensor.get_backend(name), torch.randn(2, 5, 64).to(dtype).transpose(0, 1)
    prepared = backend.prepare(up), backend.prepare(down)
    for biases in ((torch.randn(96), torch.randn(40)), (None, None)):
        hidden = backend.linear(x, prepared[0], biases[0], "int8", "gelu")
        assert hidden.dtype is dtype
        expected = backend.linear(hidden, prepared[1], biases[1], "int8", None)
        y = backend.fused().feed_forward(x, prepared[0], biases[0], "gelu", prepared[1], biases[1], "int8")
        assert torch.equal(y, expected)


def test_feed_forward_counts_its_kernels() -> None:
    backend = bittensor.get_backend(VARIANTS[-1])
    up, down = (
        backend.prepare(weight_of(32, 16, group_size=8)),
        backend.prepare(weight_of(16, 32, bits=8, group_size=32)),
    )
    before = backend.kernel_calls()
    backend.fused().feed_forward(torch.ones(3, 16), up, None, "relu", down, None, "int8")
    ran = {name for name, calls in backend.kernel_calls().items() if calls > before[name]}
    isa = backend.name.partition(":")[2]
    linears = {f"int8_linear_b4_{isa}", f"int8_linear_b8_{isa}"}
    assert ran == linears | {f"quantize_row_{isa}", f"store_outputs_{isa}"}


def feed_forward(**changes: object) -> torch.Tensor:
    backend = bittensor.get_backend("cpp")
    arguments: dict[str, object] = {
        "x": torch.zeros(3, 16),
        "up": backend.prepare(weight_of(24, 16, group_size=8)).tensors[0],
        "up_bias": torch.zeros(24),
        "down": backend.prepare(weight_of(20, 24, group_size=8)).tensors[0],
        "out_features": 20,
        "down_bias": torch.zeros(20),
        "float_mode": False,
        "activation": 2,
        **changes,
    }
    return torch.ops.bittensor_cpp.feed_forward.default(*arguments.values())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(3, 15)}, "x: expected 16 columns, got 15"),
        ({"x": torch.zeros(3, 16, dtype=torch.float64)}, "x: expected float32"),
        ({"x": torch.zeros(3, 16, device="meta")}, "x: expected a tensor with memory"),
        ({"up": torch.zeros(3)}, "up: expected uint8"),
        ({"up_bias": torch.zeros(23)}, r"up_bias: expected \[24\]"),
        ({"down": torch.zeros(3)}, "down: expected uint8"),
        ({"down": torch.zeros(64, dtype=torch.uint8)}, "prepared"),
        ({"down": None}, "down: expected a weight of 24 columns, as up has rows, got 16"),
        ({"out_features": 24}, "out_features"),
        ({"down_bias": torch.zeros(24)}, r"down_bias: expected \[20\]"),
        ({"down_bias": torch.zeros(20, dtype=torch.int32)}, "down_bias: expected float32"),
        ({"activation": 4}, "activation"),
    ],
)
def test_feed_forward_refuses(changes: dict[str, object], message: str) -> None:
    assert feed_forward().shape == (3, 20)
    if changes.get("down", 0) is None:
        changes = {"down": bittensor.get_backend("cpp").prepare(weight_of(20, 16, group_size=8)).tensors[0]}
    for dtype in (torch.float32, torch.float16):
        given = {"x": torch.zeros(3, 16, dtype=dtype), **changes}
        with pytest.raises((RuntimeError, ValueError), match=message):
            feed_forward(**given)


def test_feed_forward_refuses_an_unknown_epilogue() -> None:
    up, down = (bittensor.QuantizedLinear.from_linear(torch.nn.Linear(32, 32), group_size=32) for _ in range(2))
    first = FeedForwardUp(up)
    first.epilogue = "tanh"
    with pytest.raises(ValueError, match=r"epilogue: expected one of \(None, 'relu', 'gelu', 'silu'\), got 'tanh'"):
        FeedForwardDown(down, first)(torch.ones(3, 32))
    backend = bittensor.get_backend("cpp")
    with pytest.raises(bittensor.UnsupportedOperationError, match=r"epilogue: expected one of .*, got 'tanh'"):
        backend.fused().feed_forward(
            torch.ones(3, 32),
            up.weight.prepared_for(backend),
            None,
            "tanh",
            down.weight.prepared_for(backend),
            None,
            "int8",
        )
