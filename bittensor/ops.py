"""The public operations. Each calls an operator of torch's dispatcher, of the current backend or of `.operators`."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from .backend import Backend
from .checks import REFUSALS, check_int, check_pack, check_packed_matmul, check_unpack, check_unpack_rows
from .convolution import ConvolutionGeometry, composed_conv2d
from .function_transforms import transformed_linear, transforms_are_active
from .linear_checks import check_embedding, check_linear, check_table, refuse_tangents
from .operators import Operators
from .quantized_weight import QuantizedWeight
from .registry import current_backend


def pack_weights(weight: torch.Tensor, bits: int = 4) -> torch.Tensor:
    """Pack codes along the last dimension into int64 words, 64 / bits codes to a word, lowest bits first.

    Args:
        weight: uint8 codes ``[..., K]``, each below ``2**bits``; any strides.
        bits: 1, 2, 4 or 8.

    Returns:
        int64 ``[..., ceil(K / (64 / bits))]``. Every row starts a new word; unused high bits are 0.

    Raises:
        TypeError: `weight` is not a uint8 tensor.
        ValueError: a code does not fit (the message names the first index and its value), `bits` is not supported, or
            the tensor is on a device the backend does not serve.

    >>> import torch, bittensor
    >>> bittensor.pack_weights(torch.tensor([[1, 2, 15]], dtype=torch.uint8)).tolist() == [[0xF21]]
    True
    """
    backend = current_backend()
    if type(bits) is not int:
        bits = check_int("bits", bits)
    try:
        return _operators(backend).pack(weight, bits)
    except REFUSALS:
        check_pack(backend, weight, bits, name="weight")
        raise


def unpack_weights(packed: torch.Tensor, in_features: int, bits: int = 4) -> torch.Tensor:
    """Undo `pack_weights`: int64 ``[..., ceil(in_features / (64 / bits))]`` to uint8 ``[..., in_features]``.

    Raises:
        TypeError: `packed` is not an int64 tensor.
        ValueError: its last dimension is not the number of words that `in_features` codes take.

    >>> import torch, bittensor
    >>> weight = torch.tensor([[1, 2, 15]], dtype=torch.uint8)
    >>> bittensor.unpack_weights(bittensor.pack_weights(weight), in_features=3)
    tensor([[ 1,  2, 15]], dtype=torch.uint8)
    """
    return _unpack(packed, in_features, bits, columns_name="in_features")


def unpack_tensor(packed: torch.Tensor, rows: int, cols: int, bits: int = 4) -> torch.Tensor:
    """Unpack a result of `packed_matmul` to a matrix of codes.

    Args:
        packed: int64 ``[..., ceil(cols / (64 / bits))]``, whose leading dimensions hold `rows` rows in all.
        rows: number of rows.
        cols: number of codes in a row.
        bits: 1, 2, 4 or 8.

    Returns:
        uint8 ``[rows, cols]``.

    Raises:
        TypeError: `packed` is not an int64 tensor.
        ValueError: its shape does not hold `rows` rows of `cols` codes.

    >>> import torch, bittensor
    >>> packed = bittensor.pack_weights(torch.tensor([[7, 8], [9, 10]], dtype=torch.uint8))
    >>> bittensor.unpack_tensor(packed, 2, 2)
    tensor([[ 7,  8],
            [ 9, 10]], dtype=torch.uint8)
    """
    check_unpack_rows(packed, rows)
    codes = _unpack(packed, cols, bits, columns_name="cols")
    return codes.reshape(rows, cols)


def packed_matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    bits: int = 4,
    in_features: int | None = None,
    x_zero: int = 0,
    weight_zero: int = 0,
    scale: torch.Tensor | float | None = None,
    out_zero: int = 0,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Integer matrix product of codes, ``x @ weight.T + bias``, returned as packed codes.

    The accumulator is exact in int32 (docs/numerics.md, section 2)::

        acc[m, n] = sum_k (x[m, k] - x_zero) * (weight[n, k] - weight_zero) + bias[n]

    Without `scale` the result is ``clamp(acc, 0, 2**bits - 1)``: it saturates, it does not wrap. With `scale` it is
    ``clamp(round_half_even(float32(acc) * scale) + out_zero, 0, 2**bits - 1)``.

    Args:
        x: uint8 codes ``[..., K]``, or a packed int64 result ``[..., ceil(K/E)]`` with E = 64 / bits, which chains
            layers without unpacking.
        weight: packed int64 ``[N, ceil(K/E)]`` from `pack_weights`.
        bias: uint8 or int32 ``[N]``, added to the accumulator.
        bits: width of every code: 1, 2, 4 or 8.
        in_features: K. Needed when `x` is packed.
        x_zero: code that stands for 0 in `x`.
        weight_zero: code that stands for 0 in `weight`.
        scale: float, or float32 ``[]``, ``[1]`` or ``[N]``; finite.
        out_zero: code that stands for 0 in the result; needs `scale`.
        out_dtype: None for packed int64 ``[..., ceil(N/E)]``, torch.int32 for the accumulator ``[..., N]``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes that do not fit, codes or zero points out of range, a scale that is not finite, a device
            the backend does not serve, or sizes at which int32 could overflow.
        UnsupportedOperationError: the backend does not declare the operation or the bit width.

    >>> import torch, bittensor
    >>> x = torch.tensor([[1, 2, 3]], dtype=torch.uint8)
    >>> weight = bittensor.pack_weights(torch.tensor([[1, 1, 1], [9, 9, 9]], dtype=torch.uint8))
    >>> bittensor.packed_matmul(x, weight, out_dtype=torch.int32)
    tensor([[ 6, 54]], dtype=torch.int32)
    >>> bittensor.unpack_tensor(bittensor.packed_matmul(x, weight), 1, 2)
    tensor([[ 6, 15]], dtype=torch.uint8)
    """
    if not (type(bits) is type(x_zero) is type(weight_zero) is type(out_zero) is int):
        bits = check_int("bits", bits)
        x_zero, weight_zero = check_int("x_zero", x_zero), check_int("weight_zero", weight_zero)
        out_zero = check_int("out_zero", out_zero)
    if in_features is not None and type(in_features) is not int:
        in_features = check_int("in_features", in_features)
    if scale is not None and isinstance(scale, (float, int)):
        scale = scalar_scale(scale)
    return multiply_codes(x, weight, bias, bits, in_features, x_zero, weight_zero, scale, out_zero, out_dtype)


def multiply_codes(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    bits: int,
    in_features: int | None,
    x_zero: int,
    weight_zero: int,
    scale: torch.Tensor | None,
    out_zero: int,
    out_dtype: torch.dtype | None,
) -> torch.Tensor:
    """`packed_matmul` of numbers that are ints already, and a scale that is a tensor."""
    backend = current_backend()
    arguments = (x, weight, bias, bits, in_features, x_zero, weight_zero, scale, out_zero, out_dtype)
    if out_dtype is not None and not isinstance(out_dtype, torch.dtype):
        check_packed_matmul(backend, *arguments)  # the dispatcher takes the number of a dtype for the dtype
    try:
        return _operators(backend).packed_matmul(*arguments)
    except REFUSALS:
        check_packed_matmul(backend, *arguments)
        raise


def linear(
    x: torch.Tensor,
    weight: QuantizedWeight,
    bias: torch.Tensor | None = None,
    activation_mode: str = "int8",
    epilogue: str | None = None,
) -> torch.Tensor:
    """Linear layer on a group-quantized weight: ``epilogue(x @ dequantize(weight).T + bias)``.

    With "int8" every group of a row of `x` is rounded to 8 bits, with one scale for the group, and multiplied in
    integers: the fast way, and the same bits from every backend with exact numerics (docs/numerics.md, section 4). With
    "float" the result is as near as float32 sums would be (section 5). A row with a NaN or an infinity has no finite
    result, and touches no other row; with a NaN, and with "int8" in either case, all are NaN.

    The first call puts `weight` into the layout of the backend, where it stays: see `QuantizedWeight`. Gradients reach
    `x` and `bias` (section 6), not the weight.

    Args:
        x: float32, float16 or bfloat16 ``[..., K]``; any strides.
        weight: ``[N, K]``, from `bittensor.quantize` for example.
        bias: float32, float16 or bfloat16 ``[N]``, added before the epilogue.
        activation_mode: "int8" or "float".
        epilogue: None, "relu", "gelu" or "silu".

    Returns:
        ``[..., N]`` of the dtype of `x`.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes that do not fit, an unknown mode or epilogue, or a device the backend does not serve.
        UnsupportedOperationError: the backend does not declare the operation, the mode, the epilogue or the form of
            the weight.
        NotImplementedError: `x` or `bias` has a tangent: there is no derivative in forward mode.

    >>> import torch, bittensor
    >>> weight = bittensor.quantize(torch.tensor([[1.0, -8.0], [7.0, 0.0]]), group_size=None)
    >>> bittensor.linear(torch.tensor([[1.0, 1.0], [0.0, 127.0]]), weight, torch.tensor([0.5, 0.0]))
    tensor([[   -6.5000,     7.0000],
            [-1015.5000,     0.0000]])
    """
    if forward_ad._current_level >= 0:
        refuse_tangents(x, bias)
    backend = current_backend()
    capabilities = backend.capabilities
    if not capabilities.checks_arguments:  # before the backend prepares a weight that it may not know
        check_linear(backend, x, weight, bias, activation_mode, epilogue)
    try:
        prepared = weight.prepared_for(backend)
        if transforms_are_active():
            return transformed_linear(backend, x, prepared, bias, activation_mode, epilogue)
        operators = backend if capabilities.operators else Operators(backend)
        return operators.linear(x, prepared, bias, activation_mode, epilogue)
    except (*REFUSALS, AttributeError):
        check_linear(backend, x, weight, bias, activation_mode, epilogue)
        raise


def feed_forward(
    x: torch.Tensor,
    up: QuantizedWeight,
    up_bias: torch.Tensor | None,
    epilogue: str | None,
    down: QuantizedWeight,
    down_bias: torch.Tensor | None,
    activation_mode: str,
) -> torch.Tensor:
    """What `bittensor.nn.FeedForwardDown` computes: see `bittensor.fused.FusedOperations.feed_forward`.

    It passes gradients as `linear` does: then it is one linear after the other.
    """
    if forward_ad._current_level >= 0:
        refuse_tangents(x, up_bias, down_bias)
    backend = current_backend()
    needs_gradient = any(each is not None and each.requires_grad for each in (x, up_bias, down_bias))
    if not backend.capabilities.operators or _is_composed(needs_gradient):
        hidden = linear(x, up, up_bias, activation_mode, epilogue)
        return linear(hidden, down, down_bias, activation_mode)
    try:
        return backend.fused().feed_forward(
            x, up.prepared_for(backend), up_bias, epilogue, down.prepared_for(backend), down_bias, activation_mode
        )
    except (*REFUSALS, AttributeError):
        check_linear(backend, x, up, up_bias, activation_mode, epilogue)
        check_linear(backend, x.new_empty((0, up.shape[0])), down, down_bias, activation_mode, None)
        raise


def conv2d(
    images: torch.Tensor,
    weight: QuantizedWeight,
    bias: torch.Tensor | None,
    geometry: ConvolutionGeometry,
    activation_mode: str,
    epilogue: str | None,
) -> torch.Tensor:
    """What `bittensor.nn.QuantizedConv2d` computes: see `bittensor.fused.FusedOperations.conv2d`.

    It passes gradients as `linear` does: then it is composed of `linear`, and of torch's operations.
    """
    if forward_ad._current_level >= 0:
        refuse_tangents(images, bias)
    backend = current_backend()
    needs_gradient = images.requires_grad or (bias is not None and bias.requires_grad)
    if not backend.capabilities.operators or _is_composed(needs_gradient):
        return composed_conv2d(
            lambda patches: linear(patches, weight, bias, activation_mode, epilogue), images, geometry
        )
    try:
        return backend.fused().conv2d(images, weight.prepared_for(backend), bias, geometry, activation_mode, epilogue)
    except (*REFUSALS, AttributeError):
        check_linear(backend, images.new_empty((0, weight.shape[1])), weight, bias, activation_mode, epilogue)
        raise


def embedding(indices: torch.Tensor, weight: QuantizedWeight, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows of a group-quantized weight: ``weight.dequantize(dtype)[indices]`` (docs/numerics.md, section 9).

    Only the rows that are asked for are dequantized. They are read in the layout in which `linear` reads them, so that
    an embedding and a head can share one weight. There is no gradient: the weight is constant.

    Args:
        indices: int64 or int32 of any shape ``[...]``, each in 0..N-1.
        weight: ``[N, K]``, from `bittensor.quantize` for example.
        dtype: float32, float16 or bfloat16.

    Returns:
        ``[..., K]`` of `dtype`.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an index that is no row, or a device the backend does not serve.
        UnsupportedOperationError: the backend does not declare operations on weights, or the form of the weight.

    >>> import torch, bittensor
    >>> weight = bittensor.quantize(torch.tensor([[1.0, -8.0], [7.0, 1.0]]), group_size=None)
    >>> bittensor.embedding(torch.tensor([1, 0, 1]), weight)
    tensor([[ 7.,  1.],
            [ 1., -8.],
            [ 7.,  1.]])
    """
    backend = current_backend()
    if not backend.capabilities.checks_arguments:  # before the backend prepares a weight that it may not know
        check_table(backend, weight)
    if not isinstance(dtype, torch.dtype):  # torch's operators take some numbers for dtypes
        check_embedding(backend, indices, weight, dtype)
    try:
        return _operators(backend).embedding(indices, weight.prepared_for(backend), dtype)
    except (*REFUSALS, AttributeError):
        check_embedding(backend, indices, weight, dtype)
        raise


def _is_composed(needs_gradient: bool) -> bool:
    """Whether an operator without a gradient gives way to operations that have one."""
    return (needs_gradient and torch.is_grad_enabled()) or transforms_are_active()


def _operators(backend: Backend) -> Backend:
    """The operators that compute on `backend`: its own, or those on any."""
    return backend if backend.capabilities.operators else Operators(backend)


def _unpack(packed: torch.Tensor, columns: int, bits: int, columns_name: str) -> torch.Tensor:
    backend = current_backend()
    if not (type(columns) is type(bits) is int):
        columns, bits = check_int(columns_name, columns), check_int("bits", bits)
    try:
        return _operators(backend).unpack(packed, columns, bits)
    except REFUSALS:
        check_unpack(backend, packed, columns, bits, name="packed", columns_name=columns_name)
        raise


def scalar_scale(scale: float) -> torch.Tensor:
    """A scale given as a number, as the float32 tensor that backends take."""
    try:
        return torch.tensor(float(scale), dtype=torch.float32, device="cpu")
    except OverflowError:
        raise ValueError("scale: expected a finite value, got one too large for a float") from None
