"""The operations of transformers: every kernel path against their composition, and against one another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import bittensor
from bittensor.fused import ComposedOperations, DecoderLayers, cache_shapes, decode_by_layer

VARIANTS = [f"cpp:{isa}" for isa in bittensor.get_backend("cpp").capabilities.variants]
EPSILON = 1e-5


def weight_of(rows: int, columns: int, **settings: object) -> bittensor.QuantizedWeight:
    generator = torch.Generator().manual_seed(rows * columns)
    return bittensor.quantize(torch.randn(rows, columns, generator=generator), **settings)  # type: ignore[arg-type]


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_linear_is_near_its_composition() -> None:
    backend, x = bittensor.get_backend("cpp"), torch.randn(5, 128)
    weight, norm = backend.prepare(weight_of(32, 64, group_size=32)), (torch.rand(128), EPSILON)
    wide = backend.prepare(weight_of(32, 128))
    composed, fused = ComposedOperations(backend), backend.fused()
    assert torch.allclose(
        fused.linear(x, wide, "float", norm, residual=x[:, :32]),
        composed.linear(x, wide, "float", norm, residual=x[:, :32]),
        atol=1e-4,
    )
    assert torch.allclose(
        fused.linear(x, weight, "float", gated=True), composed.linear(x, weight, "float", gated=True), atol=1e-4
    )
    reference = bittensor.get_backend("reference")
    assert isinstance(reference.fused(), ComposedOperations)


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


class Attending:
    """Queries, keys and values of random tokens, and an empty cache for each attempt."""

    def __init__(self, heads: int, shared: int, size: int, tokens: int, capacity: int) -> None:
        generator = torch.Generator().manual_seed(tokens)
        self.heads, self.shared, self.size, self.capacity = heads, shared, size, capacity
        self.projections = torch.randn(tokens, (heads + 2 * shared) * size, generator=generator)
        angles = torch.rand(tokens, size // 2, generator=generator).repeat(1, 2) * 6
        self.cos, self.sin = angles.cos(), angles.sin()

    def run(self, fused: bittensor.fused.FusedOperations, pieces: list[int]) -> list[torch.Tensor]:
        """The result for all tokens, which arrive in pieces, and the cache."""
        keys, values = (torch.zeros(shape) for shape in cache_shapes(self.shared, self.capacity, self.size))
        outs, start = [], 0
        for count in pieces:
            at = slice(start, start + count)
            rotation = (self.cos[at], self.sin[at])
            outs.append(fused.attend(self.projections[at], rotation, keys, values, start, self.heads))
            start += count
        return [torch.cat(outs), keys, values]


CASES = [
    Attending(1, 1, 2, 1, 1),
    Attending(9, 3, 64, 70, 80),
    Attending(4, 4, 24, 130, 130),
    Attending(6, 2, 80, 33, 64),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.heads}x{case.size}")
def test_attention_is_near_its_composition(case: Attending) -> None:
    tokens = len(case.projections)
    expected = case.run(ComposedOperations(bittensor.get_backend("reference")), [tokens])
    for actual, wanted in zip(case.run(bittensor.get_backend("cpp").fused(), [tokens]), expected, strict=True):
        assert torch.allclose(actual, wanted, atol=2e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.heads}x{case.size}")
def test_attention_has_the_same_bits_everywhere(case: Attending, one_thread: None) -> None:
    tokens = len(case.projections)
    expected = case.run(bittensor.get_backend("cpp:scalar").fused(), [tokens])
    for variant in VARIANTS:
        fused = bittensor.get_backend(variant).fused()
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for pieces in ([tokens], [1] * tokens, [tokens // 2, tokens - tokens // 2]):
                if 0 in pieces:
                    continue
                for actual, wanted in zip(case.run(fused, pieces), expected, strict=True):
                    assert torch.equal(actual, wanted), (variant, threads, pieces)


def test_attention_counts_its_kernels() -> None:
    backend = bittensor.get_backend(VARIANTS[-1])
    before = backend.kernel_calls()
    CASES[0].run(backend.fused(), [1])
    ran = {name for name, calls in backend.kernel_calls().items() if calls > before[name]}
    isa = backend.name.partition(":")[2]
    assert ran == {f"panel_product_{isa}", f"softmax_row_{isa}"}


def attend(**changes: object) -> torch.Tensor:
    keys, values = (torch.zeros(shape) for shape in cache_shapes(2, 10, 8))
    angles = torch.zeros(3, 8)
    arguments: dict[str, object] = {
        "projections": torch.zeros(3, 64),
        "cos": angles,
        "sin": angles,
        "keys": keys,
        "values": values,
        "position": 0,
        "heads": 4,
        **changes,
    }
    return torch.ops.bittensor_cpp.attend.default(*arguments.values())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projections": torch.zeros(3, 63)}, "projections: expected float32"),
        ({"projections": torch.zeros(0, 64)}, "at least one token"),
        ({"projections": torch.zeros(3, 64, dtype=torch.float64)}, "projections: expected float32"),
        ({"cos": torch.zeros(2, 8)}, "cos, sin"),
        ({"sin": torch.zeros(3, 8, dtype=torch.float16)}, "cos, sin"),
        ({"keys": torch.zeros(2, 1, 8, 32)}, "keys, values"),
        ({"keys": torch.zeros(2, 2, 8, 64)}, "keys, values"),
        ({"keys": torch.zeros(2, 1, 64, 8).transpose(2, 3)}, "keys: expected contiguous"),
        ({"values": torch.zeros(2, 10, 8)}, "keys, values"),
        ({"values": torch.zeros(3, 10, 16)}, "keys, values"),
        ({"position": 8}, "position: 3 tokens from 8 on"),
        ({"position": -1}, "position"),
        ({"position": 2**63 - 1}, "position"),
        ({"heads": 3}, "heads: expected a multiple"),
        ({"heads": 0}, "heads"),
        ({"heads": 2**62}, "heads"),
        ({"cos": torch.zeros(3, 8, device="meta")}, "cos: expected a tensor with memory, got one on meta"),
        ({"values": torch.zeros(2, 10, 16, device="meta")}, "values: expected a tensor with memory"),
    ],
)
def test_attention_refuses(changes: dict[str, object], message: str) -> None:
    assert attend().shape == (3, 32)
    with pytest.raises((RuntimeError, ValueError), match=message):
        attend(**changes)


class Sequences:
    """Random queries, keys and values of sequences of different lengths, padded behind them."""

    def __init__(self, heads: int, shared: int, size: int, queries: int, lengths: list[int]) -> None:
        generator = torch.Generator().manual_seed(size)
        batch, keys = len(lengths), max(lengths)
        self.query = torch.randn(batch, queries, heads, size, generator=generator).transpose(1, 2)
        self.key, self.value = torch.randn(2, batch, keys, shared, size, generator=generator).transpose(2, 3)
        self.mask = torch.arange(keys) < torch.tensor(lengths)[:, None]
        self.lengths = lengths

    def run(self, name: str, **changes: object) -> torch.Tensor:
        operands = {"query": self.query, "key": self.key, "value": self.value, "key_mask": self.mask, "scale": 0.3}
        return bittensor.get_backend(name).fused().attend_bidirectional(**(operands | changes))  # type: ignore[arg-type]


SEQUENCES = [
    Sequences(1, 1, 1, 1, [1]),
    Sequences(12, 12, 32, 55, [55, 3, 40, 16]),
    Sequences(6, 2, 24, 9, [17, 0, 16]),
    Sequences(4, 4, 80, 130, [65, 64]),
]
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
    no_keys = torch.zeros(2, 2, 0, 8)
    assert attend_bidirectional(key=no_keys, value=no_keys).eq(0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(3, 15)}, "x: expected 16 columns"),
        ({"gated": True}, "x: expected 32 columns"),
        ({"norm": (torch.ones(15), EPSILON)}, "norm_weight: expected float32"),
        ({"norm": (torch.ones(16, dtype=torch.float64), EPSILON)}, "norm_weight: expected float32"),
        ({"norm": (torch.ones(32), EPSILON), "gated": True, "x": torch.zeros(3, 32)}, "at most one"),
        ({"residual": torch.zeros(2, 24)}, "residual: expected 3 rows of 24"),
        ({"residual": torch.zeros(3, 23)}, "residual: expected 3 rows of 24"),
        ({"residual": torch.zeros(3, 24, dtype=torch.float16)}, "residual"),
        ({"x": torch.zeros(3, 16, dtype=torch.float64)}, "x: expected float32"),
        ({"norm": (torch.ones(16, device="meta"), EPSILON)}, "norm_weight: expected a tensor with memory"),
        ({"residual": torch.zeros(3, 24, device="meta")}, "residual: expected a tensor with memory"),
    ],
)
def test_linear_refuses(changes: dict[str, object], message: str) -> None:
    backend = bittensor.get_backend("cpp")
    arguments: dict[str, object] = {"x": torch.zeros(3, 16), "weight": backend.prepare(weight_of(24, 16, group_size=8))}
    assert backend.fused().linear(**arguments, activation_mode="int8").shape == (3, 24)  # type: ignore[arg-type]
    with pytest.raises((RuntimeError, ValueError), match=message):
        backend.fused().linear(**(arguments | changes), activation_mode="int8")  # type: ignore[arg-type]
    with pytest.raises(bittensor.UnsupportedOperationError, match="int4"):
        backend.fused().linear(**arguments, activation_mode="int4")  # type: ignore[arg-type]


def test_operators_are_sound() -> None:
    backend = bittensor.get_backend("cpp")
    blob = backend.prepare(weight_of(24, 16, group_size=8)).tensors[0]
    operators = torch.ops.bittensor_cpp
    torch.library.opcheck(operators.fused_linear.default, (torch.randn(3, 16), blob, 24, torch.ones(16), EPSILON))
    torch.library.opcheck(
        operators.fused_linear.default, (torch.randn(3, 32), blob, 24, None, 0.0, True, torch.randn(3, 24))
    )
    down = backend.prepare(weight_of(20, 24, group_size=8)).tensors[0]
    torch.library.opcheck(
        operators.feed_forward.default, (torch.randn(2, 3, 16), blob, torch.randn(24), down, 20, None, True, 2)
    )
    keys, values = (torch.zeros(shape) for shape in cache_shapes(2, 10, 8))
    torch.library.opcheck(
        operators.attend.default, (torch.randn(3, 64), torch.randn(3, 8), torch.randn(3, 8), keys, values, 2, 4)
    )
    case = SEQUENCES[2]
    torch.library.opcheck(operators.attend_bidirectional.default, (case.query, case.key, case.value, case.mask, 0.3))


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
