"""Arguments that every backend refuses: the error's type, and a message that says what came and what was expected.

The rules are those of `bittensor.checks`. Through the public function the error's type and words are tested; a backend
that declares ``checks_arguments`` is also called directly, and must refuse in some way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from .. import oracle
from ..catalogue import check
from ..scripts import holds, run_body
from ..targets import Target

Arguments = dict[str, Any]

_INTEGERS = {"bits", "columns", "in_features", "x_zero", "weight_zero", "out_zero"}
"""Arguments that public functions turn into an int before they call a backend, which never sees another type."""


@dataclass(frozen=True)
class Rule:
    """Arguments that must be refused.

    Attributes:
        spoil: changes to arguments that are otherwise good, given the bit width.
        error: the exception's type, exactly.
        fragments: what the message must contain; ``{top}`` and ``{bits}`` stand for the width's values.
    """

    spoil: Callable[[int], Arguments]
    error: type[Exception]
    fragments: tuple[str, ...]


def _codes(*shape: int, dtype: torch.dtype = torch.uint8, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def _sparse() -> torch.Tensor:
    return _codes(3, 5).to_sparse()


_BITS_RULES: dict[str, Rule] = {
    "bits is a float": Rule(lambda bits: {"bits": float(bits)}, TypeError, ("bits", "float")),
    "bits is a string": Rule(lambda bits: {"bits": str(bits)}, TypeError, ("bits", "str")),
    "bits is None": Rule(lambda _: {"bits": None}, TypeError, ("bits", "NoneType")),
    **{
        f"bits is {wrong}": Rule(lambda _, wrong=wrong: {"bits": wrong}, ValueError, ("bits", str(wrong)))  # type: ignore[misc]
        for wrong in (0, 3, 5, 16, 64, -4, 2**40)
    },
}

_PACK_RULES: dict[str, Rule] = _BITS_RULES | {
    "codes are a list": Rule(lambda _: {"codes": [1, 2]}, TypeError, ("weight", "uint8", "list")),
    "codes are None": Rule(lambda _: {"codes": None}, TypeError, ("weight", "uint8", "NoneType")),
    **{
        f"codes are {name}": Rule(
            lambda _, dtype=dtype: {"codes": _codes(2, 5, dtype=dtype)},  # type: ignore[misc]
            TypeError,
            ("weight", "uint8", name, "[2, 5]"),
        )
        for name, dtype in {
            "int64": torch.int64,
            "int8": torch.int8,
            "float32": torch.float32,
            "bool": torch.bool,
        }.items()
    },
    "codes are a scalar": Rule(lambda _: {"codes": _codes()}, ValueError, ("weight", "dimension")),
    "codes are sparse": Rule(lambda _: {"codes": _sparse()}, TypeError, ("weight", "sparse")),
    "codes are on meta": Rule(lambda _: {"codes": _codes(2, 5, device="meta")}, ValueError, ("weight", "cpu", "meta")),
}

_UNPACK_RULES: dict[str, Rule] = _BITS_RULES | {
    "words are a list": Rule(lambda _: {"words": [1]}, TypeError, ("packed", "int64", "list")),
    "words are uint8": Rule(lambda _: {"words": _codes(2, 1)}, TypeError, ("packed", "int64", "uint8", "[2, 1]")),
    "words are int32": Rule(
        lambda _: {"words": _codes(2, 1, dtype=torch.int32)}, TypeError, ("packed", "int64", "int32")
    ),
    "words are a scalar": Rule(lambda _: {"words": _codes(dtype=torch.int64)}, ValueError, ("packed", "dimension")),
    "words are on meta": Rule(
        lambda _: {"words": _codes(2, 1, dtype=torch.int64, device="meta")}, ValueError, ("packed", "cpu", "meta")
    ),
    "words are sparse": Rule(
        lambda _: {"words": _codes(2, 1, dtype=torch.int64).to_sparse()}, TypeError, ("packed", "sparse")
    ),
    "columns are a float": Rule(lambda _: {"columns": 5.0}, TypeError, ("in_features", "float")),
    "columns are negative": Rule(lambda _: {"columns": -1}, ValueError, ("in_features", "-1")),
    "columns are negative, and there are no words": Rule(
        lambda _: {"words": _codes(2, 0, dtype=torch.int64), "columns": -1}, ValueError, ("in_features", "-1")
    ),
    "columns take more words": Rule(lambda _: {"columns": 65}, ValueError, ("packed", "in_features=65", "[2, 1]")),
    "columns take no word": Rule(lambda _: {"columns": 0}, ValueError, ("packed", "in_features=0", "[2, 1]")),
    "columns are enormous": Rule(
        lambda _: {"columns": 2**62}, ValueError, ("packed", f"in_features={2**62}", "[2, 1]")
    ),
}

_MATMUL_RULES: dict[str, Rule] = _BITS_RULES | {
    "x is a list": Rule(lambda _: {"x": [[1]]}, TypeError, ("x:", "uint8", "int64", "list")),
    "x is float32": Rule(
        lambda _: {"x": _codes(2, 5, dtype=torch.float32)}, TypeError, ("x:", "uint8", "float32", "[2, 5]")
    ),
    "x is int32": Rule(lambda _: {"x": _codes(2, 5, dtype=torch.int32)}, TypeError, ("x:", "uint8", "int32")),
    "x is a scalar": Rule(lambda _: {"x": _codes()}, ValueError, ("x:", "dimension")),
    "x is on meta": Rule(lambda _: {"x": _codes(2, 5, device="meta")}, ValueError, ("x:", "cpu", "meta")),
    "x has too many codes": Rule(lambda _: {"x": _codes(2, 65)}, ValueError, ("weight", "in_features=65", "[3, 1]")),
    "x has no codes": Rule(lambda _: {"x": _codes(2, 0)}, ValueError, ("weight", "in_features=0", "[3, 1]")),
    "in_features contradicts x": Rule(lambda _: {"in_features": 6}, ValueError, ("x:", "6", "[2, 5]")),
    "in_features is a string": Rule(lambda _: {"in_features": "5"}, TypeError, ("in_features", "str")),
    "packed x without in_features": Rule(
        lambda _: {"x": _codes(2, 1, dtype=torch.int64), "in_features": None}, ValueError, ("in_features", "packed")
    ),
    "packed x of too few words": Rule(
        lambda _: {"x": _codes(2, 1, dtype=torch.int64), "in_features": 65}, ValueError, ("in_features=65",)
    ),
    "packed x of too many words": Rule(
        lambda _: {"x": _codes(2, 2, dtype=torch.int64), "in_features": 5},
        ValueError,
        ("x:", "in_features=5", "[2, 2]"),
    ),
    "packed x of negative in_features": Rule(
        lambda _: {"x": _codes(2, 1, dtype=torch.int64), "in_features": -5}, ValueError, ("in_features", "-5")
    ),
    "packed x without words of negative in_features": Rule(
        lambda _: {
            "x": _codes(2, 0, dtype=torch.int64),
            "weight": _codes(3, 0, dtype=torch.int64),
            "in_features": -5,
        },
        ValueError,
        ("in_features", "-5"),
    ),
    "packed x on meta": Rule(
        lambda _: {"x": _codes(2, 1, dtype=torch.int64, device="meta"), "in_features": 5},
        ValueError,
        ("x:", "cpu", "meta"),
    ),
    "weight is uint8": Rule(lambda _: {"weight": _codes(3, 5)}, TypeError, ("weight", "int64", "uint8", "[3, 5]")),
    "weight is None": Rule(lambda _: {"weight": None}, TypeError, ("weight", "int64", "NoneType")),
    "weight has one dimension": Rule(
        lambda _: {"weight": _codes(1, dtype=torch.int64)}, ValueError, ("weight", "[N, ceil(K/E)]", "[1]")
    ),
    "weight has three dimensions": Rule(
        lambda _: {"weight": _codes(1, 3, 1, dtype=torch.int64)}, ValueError, ("weight", "[N, ceil(K/E)]", "[1, 3, 1]")
    ),
    "weight has too many words": Rule(
        lambda _: {"weight": _codes(3, 9, dtype=torch.int64)}, ValueError, ("weight", "in_features=5", "[3, 9]")
    ),
    "weight is on meta": Rule(
        lambda _: {"weight": _codes(3, 1, dtype=torch.int64, device="meta")}, ValueError, ("weight", "cpu", "meta")
    ),
    "bias is a list": Rule(lambda _: {"bias": [1, 2, 3]}, TypeError, ("bias", "[3]", "list")),
    "bias is float32": Rule(
        lambda _: {"bias": _codes(3, dtype=torch.float32)}, TypeError, ("bias", "int32", "float32", "[3]")
    ),
    "bias is int64": Rule(lambda _: {"bias": _codes(3, dtype=torch.int64)}, TypeError, ("bias", "int32", "int64")),
    "bias is too short": Rule(lambda _: {"bias": _codes(2)}, ValueError, ("bias", "[3]", "[2]")),
    "bias is too long": Rule(lambda _: {"bias": _codes(4)}, ValueError, ("bias", "[3]", "[4]")),
    "bias is a scalar": Rule(lambda _: {"bias": _codes()}, ValueError, ("bias", "[3]", "[]")),
    "bias has two dimensions": Rule(lambda _: {"bias": _codes(1, 3)}, ValueError, ("bias", "[3]", "[1, 3]")),
    "bias is on meta": Rule(lambda _: {"bias": _codes(3, device="meta")}, ValueError, ("bias", "cpu", "meta")),
    **{
        f"{name} is {what}": Rule(
            lambda bits, name=name, value=value: {"scale": torch.tensor(1.0), name: value(bits)},  # type: ignore[misc]
            error,
            (name, *fragments),
        )
        for name in ("x_zero", "weight_zero", "out_zero")
        for what, value, error, fragments in (
            ("too large", lambda bits: 2**bits, ValueError, ("0..{top}", "{beyond}")),
            ("negative", lambda _: -1, ValueError, ("0..{top}", "-1")),
            ("enormous", lambda _: 2**70, ValueError, ("0..{top}", str(2**70))),
            ("a float", lambda _: 1.0, TypeError, ("int", "float")),
            ("None", lambda _: None, TypeError, ("int", "NoneType")),
        )
    },
    "scale is a list": Rule(lambda _: {"scale": [1.0]}, TypeError, ("scale", "float32", "list")),
    "scale is float64": Rule(
        lambda _: {"scale": _codes(3, dtype=torch.float64)}, TypeError, ("scale", "float32", "float64", "[3]")
    ),
    "scale is float16": Rule(
        lambda _: {"scale": _codes(3, dtype=torch.float16)}, TypeError, ("scale", "float32", "float16")
    ),
    "scale is too short": Rule(
        lambda _: {"scale": _codes(2, dtype=torch.float32)}, ValueError, ("scale", "[3]", "[2]")
    ),
    "scale is empty": Rule(lambda _: {"scale": _codes(0, dtype=torch.float32)}, ValueError, ("scale", "[3]", "[0]")),
    "scale has two dimensions": Rule(
        lambda _: {"scale": _codes(1, 3, dtype=torch.float32)}, ValueError, ("scale", "[3]", "[1, 3]")
    ),
    "scale is on meta": Rule(
        lambda _: {"scale": _codes(3, dtype=torch.float32, device="meta")}, ValueError, ("scale", "cpu", "meta")
    ),
    **{
        f"scale holds {value}": Rule(
            lambda _, value=value: {"scale": torch.tensor([1.0, 1.0, float(value)])},  # type: ignore[misc]
            ValueError,
            ("scale", "finite"),
        )
        for value in ("nan", "inf", "-inf")
    },
    "out_dtype is float32": Rule(lambda _: {"out_dtype": torch.float32}, TypeError, ("out_dtype", "float32")),
    "out_dtype is int64": Rule(lambda _: {"out_dtype": torch.int64}, TypeError, ("out_dtype", "int64")),
    # What torch's dispatcher would take for torch.int32.
    "out_dtype is a number": Rule(lambda _: {"out_dtype": 3}, TypeError, ("out_dtype", "3")),
    "out_dtype is a string": Rule(lambda _: {"out_dtype": "int32"}, TypeError, ("out_dtype", "int32")),
    "scale with the accumulator": Rule(
        lambda _: {"scale": torch.tensor(1.0), "out_dtype": torch.int32}, ValueError, ("scale", "int32")
    ),
    "out_zero without scale": Rule(lambda _: {"out_zero": 1}, ValueError, ("out_zero", "scale")),
    "bias overflows int32": Rule(
        lambda _: {"bias": torch.full((3,), 2**31 - 1, dtype=torch.int32)},
        ValueError,
        ("accumulator", "int32", str(2**31 - 1)),
    ),
    "negative bias overflows int32": Rule(
        lambda _: {"bias": torch.tensor([0, 0, -(2**31)], dtype=torch.int32)}, ValueError, ("accumulator", str(2**31))
    ),
    "bias is one beyond the limit": Rule(
        lambda bits: {"bias": torch.tensor([0, oracle.INT32_MAX - 5 * oracle.largest_code(bits) ** 2 + 1, 0]).int()},
        ValueError,
        ("accumulator", str(2**31)),
    ),
}


@check("pack", cases=_PACK_RULES)
def test_pack_refuses(target: Target, case: Rule) -> None:
    """`pack_weights` refuses what its rules exclude."""
    good = {"codes": _codes(2, 5), "bits": _width(target)}
    _check_refused(target, "pack", good, case)


@check("unpack", cases=_UNPACK_RULES)
def test_unpack_refuses(target: Target, case: Rule) -> None:
    """`unpack_weights` refuses what its rules exclude."""
    good = {"words": _codes(2, 1, dtype=torch.int64), "columns": 5, "bits": _width(target)}
    _check_refused(target, "unpack", good, case)


@check("packed_matmul", cases=_MATMUL_RULES)
def test_packed_matmul_refuses(target: Target, case: Rule) -> None:
    """`packed_matmul` refuses what its rules exclude."""
    _check_refused(target, "packed_matmul", _good_matmul(_width(target)), case)


@check("packed_matmul", requires=("pack", "unpack"))
def test_numpy_integers_are_integers(target: Target, bits: int) -> None:
    """Counts, widths and zero points may be anything with ``__index__``, as everywhere in Python."""
    holds(target, _NUMPY_INTEGERS, bits=bits)


@check("unpack")
def test_unpack_tensor_refuses_a_wrong_number_of_rows(target: Target, bits: int) -> None:
    """`rows` must be what the leading dimensions hold."""
    for rows, shape in ((1, (2, 1)), (3, (2, 1)), (5, (2, 3, 1)), (-1, (2, 1)), (0, (1,))):
        holds(
            target, _WRONG_ROWS, bits=bits, rows=rows, shape=shape, words=["packed", f"rows={rows}", str(list(shape))]
        )


@check("pack", widths=(1, 2, 4))
def test_pack_names_the_first_bad_code(target: Target, bits: int) -> None:
    """A code that does not fit is never masked: ValueError with its index and value, wherever it is, in any strides."""
    for codes, fragments in _bad_codes(bits):
        rule = Rule(lambda _: {}, ValueError, ("weight", *fragments))
        _check_refused(target, "pack", {"codes": codes, "bits": bits}, rule)


@check("packed_matmul", widths=(1, 2, 4))
def test_packed_matmul_names_the_first_bad_code(target: Target, bits: int) -> None:
    """A code of x that does not fit is never masked: ValueError with its index and value, wherever it is.

    Without outputs as well, where nothing would be computed from it.
    """
    for codes, fragments in _bad_codes(bits):
        for outputs in (3, 0):
            good = _good_matmul(bits)
            good["x"] = codes
            good["weight"] = _codes(outputs, oracle.word_count(codes.shape[-1], bits), dtype=torch.int64)
            _check_refused(target, "packed_matmul", good, Rule(lambda _: {}, ValueError, ("x:", *fragments)))


@check("pack", widths=(1, 2, 4))
def test_pack_finds_one_bad_code_among_many(target: Target, bits: int) -> None:
    """In a matrix that threads share, whichever of them meets the code and whichever ends last."""
    _check_among_many(target, bits, "weight", (5, 40_000), _PACKS_MANY)


@check("packed_matmul", widths=(1, 2, 4))
def test_packed_matmul_finds_one_bad_code_among_many(target: Target, bits: int) -> None:
    """In an x that threads share, whichever of them meets the code and whichever ends last."""
    _check_among_many(target, bits, "x:", (700, 300), _MULTIPLIES_MANY)


@check("packed_matmul", widths=(8,))
def test_packed_matmul_refuses_a_depth_that_overflows(target: Target, bits: int) -> None:
    """8 bits: 33025 columns fit int32 at zero points 0, 33026 do not; 131072 do not at any."""
    for depth, zero in ((33_026, 0), (33_026, 255), (131_072, 128), (131_072, 127)):
        good = _good_matmul(bits) | {"x": _codes(1, depth), "weight": _codes(1, depth // 8 + 1, dtype=torch.int64)}
        good |= {
            "weight": _codes(1, oracle.word_count(depth, 8), dtype=torch.int64),
            "x_zero": zero,
            "weight_zero": zero,
        }
        _check_refused(target, "packed_matmul", good, Rule(lambda _: {}, ValueError, ("accumulator", str(depth))))


def _width(target: Target) -> int:
    """4 if the target has it: most rules do not depend on the width."""
    return 4 if 4 in target.capabilities.bits else min(target.capabilities.bits)


def _good_matmul(bits: int) -> Arguments:
    return {
        "x": _codes(2, 5),
        "weight": _codes(3, 1, dtype=torch.int64),
        "bias": None,
        "bits": bits,
        "in_features": None,
        "x_zero": 0,
        "weight_zero": 0,
        "scale": None,
        "out_zero": 0,
        "out_dtype": None,
    }


def _bad_codes(bits: int) -> list[tuple[torch.Tensor, tuple[str, ...]]]:
    """Tensors with a code out of range, and how the message names the first in row-major order."""
    top = oracle.largest_code(bits)
    bad: list[tuple[torch.Tensor, tuple[str, ...]]] = []
    for columns in (1, 2, 15, 16, 17, 31, 33, 64, 65, 130, 257):
        for row, column in {(0, 0), (0, columns - 1), (2, columns // 2), (2, columns - 1)}:
            for value in {top + 1, 128, 255}:
                codes = torch.full((3, columns), top, dtype=torch.uint8)
                codes[row, column] = value
                if row == 0:
                    codes[2, columns - 1] = 254  # a later one, which must not be the one that is named
                    if (row, column) == (2, columns - 1):
                        continue
                fragments = (f"0..{top}", f"{value} at index [{row}, {column}]")
                bad += [(codes, fragments), (codes.t().contiguous().t(), fragments)]
    cube = torch.full((2, 3, 5), top, dtype=torch.uint8)
    cube[1, 2, 4] = cube[1, 0, 3] = top + 1
    bad.append((cube, (f"{top + 1} at index [1, 0, 3]",)))
    bad.append((cube.permute(0, 2, 1), (f"{top + 1} at index [1, 3, 0]",)))
    bad.append((cube[1, 0], (f"{top + 1} at index [3]",)))
    return bad


def _check_among_many(target: Target, bits: int, name: str, shape: tuple[int, int], body: str) -> None:
    """A matrix of the largest codes, with one that is larger at its begin, in its middle or at its end."""
    top, threads = oracle.largest_code(bits), torch.get_num_threads()
    direct = target.capabilities.checks_arguments
    try:
        for count, place in product((2, 3), ((0, 0), (shape[0] // 2, 1), (shape[0] - 1, shape[1] - 1))):
            words = [name, f"{top + 1} at index [{place[0]}, {place[1]}]"]
            names = {"bits": bits, "shape": shape, "top": top, "place": place, "count": count}
            holds(target, body, **names, words=words, direct=direct)
    finally:
        torch.set_num_threads(threads)


def _check_refused(target: Target, operation: str, good: Arguments, rule: Rule) -> None:
    bits, spoiled = good["bits"], rule.spoil(good["bits"])
    top = oracle.largest_code(bits)
    words = [fragment.format(top=top, beyond=top + 1, bits=bits) for fragment in rule.fragments]
    arguments = good | spoiled
    body = f"with refused({rule.error.__name__}, words=words, exactly=True):\n    {_PUBLIC[operation]}"
    holds(target, body, arguments=arguments, words=words)
    wrong_integer = rule.error is TypeError and _INTEGERS & spoiled.keys()
    if target.capabilities.checks_arguments and not wrong_integer:
        # In words of its own: BitTensor words the error for users.
        body = f"with refused(TypeError, ValueError, RuntimeError):\n    {_DIRECT.format(operation)}"
        run_body(target.name, body, {"arguments": arguments})


_PUBLIC = {
    "pack": 'bittensor.pack_weights(arguments["codes"], arguments["bits"])',
    "unpack": 'bittensor.unpack_weights(arguments["words"], arguments["columns"], arguments["bits"])',
    "packed_matmul": "bittensor.packed_matmul(**arguments)",
}
_DIRECT = "bittensor.current_backend().{}(*arguments.values())"
_MANY = """
codes = torch.full(shape, top, dtype=torch.uint8)
codes[place] = top + 1
torch.set_num_threads(count)
"""
_PACKS_MANY = f"""{_MANY}
with refused(ValueError, words=words, exactly=True):
    bittensor.pack_weights(codes, bits)
if direct:  # not looked at by anybody before the backend
    with refused(TypeError, ValueError, RuntimeError):
        bittensor.current_backend().pack(codes, bits)
"""
_MULTIPLIES_MANY = f"""{_MANY}
weight = torch.from_numpy(oracle.pack(Fill().codes((5, shape[1]), bits), bits))
with refused(ValueError, words=words, exactly=True):
    bittensor.packed_matmul(codes, weight, bits=bits, out_dtype=torch.int32)
if direct:
    with refused(TypeError, ValueError, RuntimeError):
        bittensor.current_backend().packed_matmul(codes, weight, None, bits, None, 0, 0, None, 0, torch.int32)
"""
_NUMPY_INTEGERS = """
codes = np.array([[1, 0, 1], [0, 1, 1]], dtype=np.uint8)
words = torch.from_numpy(oracle.pack(codes, bits))
width, columns, one = np.int64(bits), np.int32(3), np.uint8(1)
same(bittensor.pack_weights(torch.from_numpy(codes), width), words)
same(bittensor.unpack_weights(words, columns, width), codes)
product = bittensor.packed_matmul(
    words, words, bits=width, in_features=columns, x_zero=one, weight_zero=one, out_dtype=torch.int32
)
same(product, oracle.accumulate(codes, codes, 1, 1).astype(np.int32))
"""
_WRONG_ROWS = """
with refused(ValueError, words=words, exactly=True):
    bittensor.unpack_tensor(torch.zeros(shape, dtype=torch.int64), rows, 5, bits)
"""
