"""The form of a group-quantized weight as a tensor, so that a state_dict and a checkpoint can hold it."""

from __future__ import annotations

import torch

from .prepared_weight import SCALE_DTYPES, ZERO_KINDS, WeightForm
from .weight_checks import check_group_bits, check_group_size, check_shape

FORM_VERSION = 1
"""First number of the entry."""

_LENGTH = 7


def form_entry(form: WeightForm) -> torch.Tensor:
    """int64 ``[7]``: `FORM_VERSION`, N, K, bits, group size, and the places in `ZERO_KINDS` and `SCALE_DTYPES`.

    >>> form_entry(WeightForm((2, 40), bits=4, group_size=16, zero="integer", scale_dtype=torch.float16)).tolist()
    [1, 2, 40, 4, 16, 1, 0]
    """
    zero, scale_dtype = ZERO_KINDS.index(form.zero), SCALE_DTYPES.index(form.scale_dtype)
    entry = [FORM_VERSION, *form.shape, form.bits, form.group_size, zero, scale_dtype]
    return torch.tensor(entry, device="cpu")


def form_of(entry: torch.Tensor) -> WeightForm:
    """Undo `form_entry`.

    Raises:
        ValueError: not an entry of this version, or numbers that no weight has.
    """
    if entry.dtype is not torch.int64 or entry.shape != (_LENGTH,):
        raise ValueError(f"form: expected int64 [{_LENGTH}], got {entry.dtype} {list(entry.shape)}")
    version, rows, columns, bits, group_size, zero, scale_dtype = entry.tolist()
    if version != FORM_VERSION:
        raise ValueError(f"form: expected version {FORM_VERSION} of the format, got {version}")
    if not 0 <= zero < len(ZERO_KINDS) or not 0 <= scale_dtype < len(SCALE_DTYPES):
        raise ValueError(f"form: no kind of zero {zero}, or no scale dtype {scale_dtype}")
    shape, width = check_shape((rows, columns)), check_group_bits(bits)
    return WeightForm(shape, width, check_group_size(group_size, columns), ZERO_KINDS[zero], SCALE_DTYPES[scale_dtype])
