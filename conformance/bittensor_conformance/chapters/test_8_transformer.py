"""docs/numerics.md, section 8: what lies between the linears of a transformer.

Every backend is held to the formulas. One with operations of its own is also held to what section 8 promises beyond
them: what is not seen leaves no trace, and with exact numerics a token has the same bits whatever it comes with. The
operations of torch, of which the others are composed, promise neither: there such checks have no examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle, product
from typing import Any

import torch

from bittensor.backend import Capabilities
from bittensor.fused import ComposedOperations

from ..catalogue import check
from ..fills import Fill
from ..float_fills import FloatFill
from ..linear_cases import Mode
from ..linear_strategies import scope
from ..scripts import holds, on_threads
from ..targets import Target

_MODES: Mapping[str, Mode] = {"int8": "int8", "float": "float"}

# Hidden values of a feed-forward network, and columns of a group of the weight that takes them.
_HIDDEN = ((8, 8), (100, 24), (424, 40), (416, 416))

# Rows, columns, hidden values and columns of a group of networks that a backend may spread over threads: few hidden
# values and rows that eight threads cannot share evenly; 2**23 products, so that threads may take over from each other.
_LARGE = ((25, 300, 240, 24), (9, 640, 1600, 32))

# Heads, heads of keys and values, values of a head, tokens, room in the cache.
_CACHED = ((1, 1, 2, 1, 1), (6, 2, 24, 17, 17), (9, 3, 64, 66, 70), (2, 2, 18, 33, 64), (4, 1, 80, 5, 130),
           (4, 2, 16, 300, 320), (2, 1, 128, 20, 24))  # fmt: skip

# Heads, heads of keys and values, values of a head, queries, tokens that each sequence has.
_SEQUENCES = (
    (1, 1, 1, 1, (1,)),
    (12, 12, 32, 55, (55, 3, 40, 16)),
    (6, 2, 24, 9, (17, 0, 16)),
    (2, 1, 80, 70, (65, 64)),
    (3, 3, 16, 1, (129, 1)),
    (2, 1, 128, 20, (33, 300)),
)


def _has_own_operations(target: Target) -> bool:
    return not isinstance(target.backend.fused(), ComposedOperations)


def _declared(capabilities: Capabilities, mode: Any) -> bool:
    return mode in capabilities.activation_modes


@check("linear", cases=_MODES, applies=_declared)
def test_linear_behind_norms_and_gates(target: Target, bits: int, case: Mode) -> None:
    """RMSNorm, SwiGLU or nothing before a linear, and a residual or none after it, in each zero kind."""
    within = scope(target.capabilities)
    for zero, (n, k), before, residual in product(
        within.zeros, ((24, 16), (33, 130)), ("norm", "gate", None), (True, False)
    ):
        weight = within.weight(bits, n, k, 8, zero)
        for epsilon in (1e-5, 0.5) if before == "norm" else (0.0,):
            for factor in (1.0, 100.0) if before == "gate" else (1.0,):  # gates whose exponential overflows
                x = FloatFill(seed=k, factor=factor)
                names = {"weight": weight, "x": x, "before": before, "residual": residual}
                holds(target, _LINEAR, **names, epsilon=epsilon, mode=case, exact=target.is_exact)


@check("linear", cases=_MODES, applies=_declared)
def test_feed_forward_is_its_linears(target: Target, bits: int, case: Mode) -> None:
    """Two linears in one step, in each zero kind, with epilogues and biases in turn; rounded in between to bfloat16."""
    within = scope(target.capabilities)
    epilogues, biased, rows = cycle(within.epilogues), cycle((True, True, False, True, True)), cycle((35, 64, 130))
    for (hidden, group_size), zero, dtype in product(_HIDDEN, within.zeros, ("float32", "bfloat16")):
        up, down = within.weight(bits, hidden, 24, 8, zero), within.weight(bits, 19, hidden, group_size, zero)
        names = {"up": up, "down": down, "epilogue": next(epilogues), "biased": next(biased), "dtype": dtype}
        holds(target, _FEED_FORWARD, **names, rows=next(rows), mode=case, exact=target.is_exact)


@check("linear", cases=_MODES, applies=_declared)
def test_feed_forward_on_any_number_of_threads(target: Target, bits: int, case: Mode) -> None:
    """2, 3 and 8 threads give what one gives, in networks that split by rows, by hidden values, and by both."""
    within = scope(target.capabilities)
    threads = torch.get_num_threads()
    try:
        for (rows, columns, hidden, group_size), zero in zip(_LARGE, cycle(within.zeros)):
            up, down = within.weight(bits, hidden, columns, 8, zero), within.weight(bits, 19, hidden, group_size, zero)
            names = {"up": up, "down": down, "rows": rows, "epilogue": within.epilogues[0]}
            holds(target, _FEED_FORWARD_ON_THREADS, **names, mode=case, exact=target.is_exact)
    finally:
        torch.set_num_threads(threads)


@check("linear")
def test_attention_over_a_cache(target: Target) -> None:
    """All tokens at once, one by one, and in two parts, over caches with and without room left."""
    for case, pieces in product(_CACHED, ("all", "each", "halves")):
        holds(target, _CACHE + _NEAR, case=case, pieces=pieces, bad=None, factor=1.0, reach=2e-5)


@check("linear")
def test_attention_of_large_scores(target: Target) -> None:
    """Scores whose exponential overflows: the largest is subtracted first, over a cache and of whole sequences."""
    for case in _CACHED[1:3]:
        holds(target, _CACHE + _NEAR, case=case, pieces="all", bad=None, factor=60.0, reach=2e-3)
    for sequences in _SEQUENCES[1:4]:
        holds(target, _WHOLE, case=sequences, padding=None, factor=240.0, reach=2e-3)


@check("linear")
def test_concurrent_attention_does_not_disturb_each_other(target: Target) -> None:
    """Whole sequences from four Python threads at once: no scratch memory is shared between them."""
    for case in ((2, 1, 16, 9, (12, 7)), (4, 2, 24, 20, (33, 1))):
        holds(target, _OWN + _SEQUENCES_OF_CASE + _CONCURRENT, case=case, backend_name=target.name, factor=1.0)


@check("linear")
def test_a_bad_value_reaches_those_that_see_it(target: Target) -> None:
    """A NaN or an infinity in a key or a value: no token before it, and no head that does not share it."""
    if not _has_own_operations(target):
        return
    for what, bad in product((1, 2), ("nan", "inf")):
        holds(target, _CACHE + _APART, case=(6, 2, 16, 20, 32), pieces="all", bad=(what, bad), factor=1.0)


@check("linear")
def test_attention_of_whole_sequences(target: Target) -> None:
    """Sequences of different lengths, none included, with heads that share keys; padding holds NaN and infinity."""
    for case in _SEQUENCES:
        for padding in (None, "nan", "inf") if _has_own_operations(target) else (None,):
            holds(target, _WHOLE, case=case, padding=padding, factor=1.0, reach=2e-5)


@check("linear", cases=_MODES, applies=_declared)
def test_layers_are_their_operations(target: Target, bits: int, case: Mode) -> None:
    """`decode` gives what the operations give one after the other, and leaves the same cache."""
    within = scope(target.capabilities)
    for heads, shared, size, width, hidden, tokens in ((1, 1, 8, 16, 8, 1), (6, 2, 16, 48, 72, 21)):
        shapes = (((heads + 2 * shared) * size, width), (width, heads * size), (2 * hidden, width), (width, hidden))
        weights = tuple(
            within.weight(bits, n, k, 8, codes=Fill(seed=place), scales=FloatFill(seed=place, factor=0.5 / k))
            for place, (n, k) in enumerate((*shapes, *shapes))
        )
        sizes = (heads, shared, size, width, tokens)
        holds(target, _LAYERS, weights=weights, sizes=sizes, mode=case, exact=target.is_exact)


def _exact(capabilities: Capabilities, _: Any) -> bool:
    return capabilities.numerics == "exact"


@check("linear", applies=_exact)
def test_a_token_has_the_same_bits_in_any_company(target: Target) -> None:
    """Attention on 1 to 3 threads, of tokens that come together or not, of sequences alone or in a batch."""
    if not _has_own_operations(target):
        return
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for cached, pieces in product(_CACHED, ("each", "halves")):
                holds(
                    target, on_threads(count) + _CACHE + _SAME_CACHE, case=cached, pieces=pieces, bad=None, factor=1.0
                )
            for sequences in _SEQUENCES:
                holds(target, on_threads(count) + _ALONE, case=sequences, factor=1.0)
    finally:
        torch.set_num_threads(threads)


@check("linear", applies=_exact, variants_only=True)
def test_attention_is_the_same_on_every_variant(target: Target) -> None:
    """The bits of the backend without a variant."""
    if not _has_own_operations(target):
        return
    base = target.name.partition(":")[0]
    for cached in _CACHED:
        names = {"case": cached, "pieces": "all", "bad": None, "factor": 1.0}
        holds(target, _CACHE + _ON_BASE + _SAME_CACHE, **names, base=base)
    for sequences in _SEQUENCES:
        holds(target, _OWN + _SEQUENCES_OF_CASE + _SAME_SEQUENCES, case=sequences, factor=1.0, base=base)


@check("linear", variants_only=True)
def test_operations_run_their_own_kernels(target: Target, bits: int) -> None:
    """Only kernels called ``..._<variant>`` gain calls, and at least one does."""
    within = scope(target.capabilities)
    weight, down = within.weight(bits, 24, 16, 8), within.weight(bits, 16, 24, 8)
    holds(target, _KERNELS, weight=weight, down=down, variant=target.variant)


# Whether a backend has operations of its own.
_OWN = """
backend = bittensor.current_backend()
fused = backend.fused()
own = not isinstance(fused, bittensor.fused.ComposedOperations)
"""

_LINEAR = (
    _OWN
    + """
n, k = weight.n, weight.k
values = x.floats((5, 2 * k if before == "gate" else k), "float32")
scales = np.linspace(0.5, 2, k, dtype=np.float32)
added = FloatFill(seed=7).floats((5, n), "float32") if residual else None
def call(rows):
    return fused.linear(
        torch.from_numpy(values[rows]), prepared, mode,
        norm=(torch.from_numpy(scales), epsilon) if before == "norm" else None, gated=before == "gate",
        residual=torch.from_numpy(added[rows]) if residual else None,
    )
prepared = backend.prepare(weight.quantized())
inner = values.astype(np.float64)
if before == "norm":
    inner = oracle_transformer.normalized(inner, scales, epsilon)
if before == "gate":
    inner = oracle_transformer.gated(inner)
matrix = oracle_linear.dequantize(weight.weight, "float32").astype(np.float64)
expected = inner @ matrix.T + (added if residual else 0.0)
# Rounding of sums, and in the mode "int8" half a step of each activation.
largest = np.abs(matrix).max()
reach = 1e-5 * np.abs(inner).sum(axis=1, keepdims=True) * largest + 1e-6 * np.abs(expected)
if mode == "int8":
    reach = reach + np.abs(inner).max(axis=1, keepdims=True) / 253 * np.abs(matrix).sum(axis=1)
actual = call(slice(None))
assert actual.dtype is torch.float32 and actual.shape == (5, n), (actual.dtype, actual.shape)
errors = np.abs(actual.numpy() - expected)
assert (errors <= reach).all(), f"an error of {errors.max():.3g} where {reach.reshape(-1)[0]:.3g} is allowed"
if own and exact:
    for row in range(5):
        same(call(slice(row, row + 1)), actual[row : row + 1])
"""
)

_FEED_FORWARD = (
    _OWN
    + """
prepared = backend.prepare(up.quantized()), backend.prepare(down.quantized())
biases = [torch.from_numpy(FloatFill(seed=n).floats((n,), "float32")) if biased else None for n in (up.n, down.n)]
x = torch.from_numpy(FloatFill(seed=up.k).floats((rows, up.k), "float32")).to(getattr(torch, dtype))
def call(x):
    return fused.feed_forward(x, prepared[0], biases[0], epilogue, prepared[1], biases[1], mode)
hidden = backend.linear(x, prepared[0], biases[0], mode, epilogue)
expected = backend.linear(hidden, prepared[1], biases[1], mode, None)
actual = call(x)
assert actual.dtype is x.dtype and actual.shape == expected.shape, (actual.dtype, actual.shape)
if exact:
    same(actual, expected)
    for row in (0, rows - 1):
        same(call(x[row : row + 1]), actual[row : row + 1])
    same(call(x[None, ::2]), actual[None, ::2])
else:
    assert torch.allclose(actual, expected, rtol=0, atol=1e-2 * float(expected.abs().max())), "not the linears"
kept, second = actual.clone(), call(-x)
same(actual, kept)
assert second.untyped_storage().data_ptr() != actual.untyped_storage().data_ptr(), "two results share memory"
"""
)

_FEED_FORWARD_ON_THREADS = (
    _OWN
    + """
prepared = backend.prepare(up.quantized()), backend.prepare(down.quantized())
x = torch.from_numpy(FloatFill(seed=up.k).floats((rows, up.k), "float32"))
def call(threads):
    torch.set_num_threads(threads)
    return fused.feed_forward(x, prepared[0], None, epilogue, prepared[1], None, mode)
results = [call(1)]
for threads in (2, 3, 8, 2, 3, 8):
    results.append(call(threads))  # kept, so that no call finds the values of another in its memory
    reach = 0 if exact else 1e-2 * float(results[0].abs().max())
    same(results[-1], results[0], reach)
"""
)

_CACHE = (
    _OWN
    + """
heads, shared, size, tokens, room = case
generator = np.random.default_rng(tokens)
projections = generator.standard_normal((tokens, heads + 2 * shared, size), dtype=np.float32)
projections[:, :heads] *= factor
if bad is not None:
    projections[9, heads + shared * (bad[0] - 1), 3] = np.float32(bad[1])
angles = np.tile(generator.uniform(0, 6, (tokens, size // 2)), 2)
cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
half = tokens // 2
parts = {"all": [tokens], "each": [1] * tokens, "halves": [half, tokens - half] if half else [tokens]}
def run(counts):
    keys, values = (torch.zeros(shape) for shape in bittensor.fused.cache_shapes(shared, room, size))
    results, start = [], 0
    for count in counts:
        at = slice(start, start + count)
        rows = torch.from_numpy(projections[at].reshape(count, -1))
        rotation = torch.from_numpy(cos[at]), torch.from_numpy(sin[at])
        results.append(fused.attend(rows, rotation, keys, values, start, heads))
        start += count
    return torch.cat(results), keys, values
actual, keys, values = run(parts[pieces])
"""
)

_NEAR = """
given = projections.astype(np.float64)
turned = oracle_transformer.turned(given[:, : heads + shared], cos.astype(np.float64), sin.astype(np.float64))
query, key, value = turned[:, :heads], turned[:, heads:], given[:, heads + shared :]
visible = np.tri(tokens, dtype=bool)
expected = oracle_transformer.attended(query, key, value, visible, size**-0.5)
assert actual.dtype is torch.float32 and actual.shape == (tokens, heads * size), (actual.dtype, actual.shape)
assert np.allclose(actual, expected, rtol=0, atol=reach), np.abs(actual.numpy() - expected).max()
held = keys.transpose(2, 3).reshape(shared, -1, size)
assert np.allclose(held[:, :tokens], key.transpose(1, 0, 2), rtol=0, atol=1e-5), "keys of the cache"
assert not held[:, tokens:].any(), "keys behind the tokens"
same(values[:, :tokens, :size], torch.from_numpy(projections[:, heads + shared :]).transpose(0, 1))
assert not values[:, tokens:].any() and not values[..., size:].any(), "values behind the tokens"
"""

_APART = """
sees = torch.zeros(tokens, heads, dtype=torch.bool)
sees[9:, : heads // shared] = True
broken = ~actual.view(tokens, heads, size).isfinite().all(dim=-1)
assert torch.equal(broken, sees), "tokens and heads that are not finite: " + str(broken.nonzero().tolist())
"""

_ON_BASE = """
fused = bittensor.get_backend(base).fused()
"""

_SAME_CACHE = """
for one, other in zip((actual, keys, values), run(parts["all"])):
    same(one, other)
"""

_SEQUENCES_OF_CASE = """
heads, shared, size, tokens, lengths = case
count, longest = len(lengths), max(lengths)
generator = np.random.default_rng(size)
query = generator.standard_normal((count, tokens, heads, size), dtype=np.float32) * np.float32(factor)
key, value = generator.standard_normal((2, count, longest, shared, size), dtype=np.float32)
mask = np.arange(longest) < np.array(lengths)[:, None]
mask[::2, 3::7] = False
def run(query, key, value, mask):
    operands = [torch.from_numpy(each).transpose(1, 2) for each in (query, key, value)]
    return fused.attend_bidirectional(*operands, None if mask is None else torch.from_numpy(mask), 0.25)
"""

_SAME_SEQUENCES = """
actual, fused = run(query, key, value, mask), bittensor.get_backend(base).fused()
same(actual, run(query, key, value, mask))
"""

_WHOLE = (
    _OWN
    + _SEQUENCES_OF_CASE
    + """
expected = np.stack([
    oracle_transformer.attended(*(each[i].astype(np.float64) for each in (query, key, value)),
                                np.broadcast_to(mask[i], (tokens, longest)), 0.25)
    for i in range(count)
])
if padding is not None:
    key[~mask], value[~mask] = np.float32(padding), np.float32(padding)
actual = run(query, key, value, mask)
assert actual.dtype is torch.float32 and actual.shape == (count, tokens, heads * size), (actual.dtype, actual.shape)
assert np.allclose(actual, expected, rtol=0, atol=reach), np.abs(actual.numpy() - expected).max()
"""
)

_CONCURRENT = """
from concurrent.futures import ThreadPoolExecutor
operands = [[each * np.float32(scale) for each in (query, key, value)] for scale in (1, 2, -1, 0.5)]
alone = [run(*each, mask) for each in operands]
def repeat(each):
    with bittensor.use_backend(backend_name):
        return [run(*each, mask) for _ in range(3)]
with ThreadPoolExecutor(4) as pool:
    results = list(pool.map(repeat, operands))
for expected, calls in zip(alone, results):
    for actual in calls:
        same(actual, expected, within=1e-5)
"""

_ALONE = (
    _OWN
    + _SEQUENCES_OF_CASE
    + """
together = run(query, key, value, mask)
for i in range(count):
    at = slice(i, i + 1)
    same(run(query[at], key[at, mask[i]], value[at, mask[i]], None), together[at])
for t in range(0, tokens, 7):
    same(run(query[:, t : t + 1], key, value, mask), together[:, t : t + 1])
"""
)

_LAYERS = (
    _OWN
    + """
heads, shared, size, width, tokens = sizes
generator = torch.Generator().manual_seed(width)
prepared = [backend.prepare(weight.quantized()) for weight in weights]
norms = torch.rand(2, 2, width, generator=generator) + 0.5
layers = bittensor.fused.DecoderLayers(norms, 1e-5, (tuple(prepared[:4]), tuple(prepared[4:])), mode)
x = torch.randn(tokens, width, generator=generator)
angles = torch.rand(tokens, size // 2, generator=generator).repeat(1, 2) * 6
def run(decode):
    keys, values = (torch.zeros(2, *shape) for shape in bittensor.fused.cache_shapes(shared, tokens + 3, size))
    return decode(x, layers, (angles.cos(), angles.sin()), keys, values, 0, heads), keys, values
def by_layer(operations):
    return lambda *rest: bittensor.fused.decode_by_layer(operations, *rest)
actual = run(fused.decode)
for one, other in zip(actual, run(by_layer(fused))):
    if own and exact:
        same(one, other)
    assert torch.allclose(one, other, rtol=0, atol=1e-4 * float(other.abs().max())), (one - other).abs().max()
if mode == "float":
    for one, other in zip(actual, run(by_layer(bittensor.fused.ComposedOperations(backend)))):
        assert torch.allclose(one, other, rtol=0, atol=1e-4 * float(other.abs().max())), (one - other).abs().max()
"""
)

_KERNELS = (
    _OWN
    + """
prepared, before = backend.prepare(weight.quantized()), dict(backend.kernel_calls())
mode = sorted(backend.capabilities.activation_modes)[0]
fused.linear(torch.ones(3, 16), prepared, mode, norm=(torch.ones(16), 1e-5))
fused.linear(torch.ones(3, 32), prepared, mode, gated=True)
keys, values = (torch.zeros(shape) for shape in bittensor.fused.cache_shapes(2, 10, 8))
fused.feed_forward(torch.ones(3, 16), prepared, None, None, backend.prepare(down.quantized()), None, mode)
fused.attend(torch.ones(3, 64), (torch.ones(3, 8), torch.ones(3, 8)), keys, values, 0, 4)
fused.attend_bidirectional(*[torch.ones(1, 2, 3, 8)] * 3, None, 0.25)
ran = {name for name, calls in backend.kernel_calls().items() if calls != before.get(name, 0)}
foreign = sorted(name for name in ran if not name.endswith("_" + variant))
assert ran and not foreign, f"expected kernels ..._{variant} and no others, got {foreign or 'none'}"
"""
)
