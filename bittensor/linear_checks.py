"""The rules for the arguments of `bittensor.linear`, stated once; see `bittensor.checks`."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch.autograd import forward_ad

from .backend import Backend
from .checks import check_operation, check_place, describe
from .errors import UnsupportedOperationError
from .prepared_weight import ACTIVATION_MODES, EPILOGUES, SCALE_DTYPES, WeightForm
from .quantized_weight import QuantizedWeight
from .weight_checks import check_choice, check_index_dtype, check_row_numbers, check_scale_dtype, dtype_names

LARGEST_GROUP = 65536
"""127 * 255 times as many columns fits int32: the sums of docs/numerics.md, section 4, are exact."""


def check_linear(
    backend: Backend, x: object, weight: object, bias: object, activation_mode: object, epilogue: object
) -> None:
    """Rules of `bittensor.linear`; docs/numerics.md, sections 3 to 5, gives the reasons."""
    if not isinstance(weight, QuantizedWeight):
        raise TypeError(f"weight: expected a QuantizedWeight, got {type(weight).__name__}")
    check_product(backend, x, weight.form, weight.device, bias, activation_mode, epilogue)


def check_product(
    backend: Backend,
    x: object,
    form: WeightForm,
    device: torch.device,
    bias: object,
    activation_mode: object,
    epilogue: object,
) -> None:
    """The same for a weight of `form` on `device`."""
    _check_settings(form, bias, activation_mode, epilogue)
    check_operation(backend, "linear")
    modes, epilogues = backend.capabilities.activation_modes, backend.capabilities.epilogues
    settings = {"activation_mode": (activation_mode, modes), "epilogue": (epilogue, epilogues)}
    _check_declared(backend, form, settings)
    columns = form.shape[1]
    if form.group_size > LARGEST_GROUP:
        raise ValueError(
            f"weight: expected groups of at most {LARGEST_GROUP} columns, whose sums fit int32, got {form.group_size}"
        )
    rows = _check_floats("x", x, f"[..., {columns}]")
    check_place(backend, "x", rows)
    if rows.shape[-1:] != (columns,):
        raise ValueError(f"x: expected {columns} values a row, as the weight has columns, got {describe(rows)}")
    _check_weight_place(backend, device)
    if isinstance(bias, torch.Tensor):
        check_place(backend, "bias", bias)


def check_embedding(backend: Backend, indices: object, weight: object, dtype: object) -> None:
    """Rules of `bittensor.embedding`; docs/numerics.md, section 9."""
    table = check_table(backend, weight)
    check_rows(backend, indices, table.form, table.device, dtype)


def check_table(backend: Backend, weight: object) -> QuantizedWeight:
    """The backend declares what holding `weight` takes; returns it."""
    if not isinstance(weight, QuantizedWeight):
        raise TypeError(f"weight: expected a QuantizedWeight, got {type(weight).__name__}")
    check_operation(backend, "prepare")
    _check_declared(backend, weight.form, {})
    _check_weight_place(backend, weight.device)
    return weight


def check_rows(backend: Backend, indices: object, form: WeightForm, device: torch.device, dtype: object) -> None:
    """The same for a weight of `form` on `device`."""
    check_scale_dtype(dtype, "dtype")
    _check_declared(backend, form, {})
    check_place(backend, "indices", check_index_dtype(indices))
    _check_weight_place(backend, device)
    check_row_numbers(indices, form.shape[0])


def check_layer(weight: object, bias: object, activation_mode: object, epilogue: object) -> QuantizedWeight:
    """The rules that depend neither on the backend nor on the input; returns `weight`."""
    if not isinstance(weight, QuantizedWeight):
        raise TypeError(f"weight: expected a QuantizedWeight, got {type(weight).__name__}")
    _check_settings(weight.form, bias, activation_mode, epilogue)
    return weight


def refuse_tangents(*values: object) -> None:
    """None of these has a tangent: an operator without a derivative in forward mode would drop it without a word.

    To be called where a forward mode of torch is entered, ``torch.autograd.forward_ad._current_level >= 0``.
    """
    for value in values:
        if not isinstance(value, torch.Tensor):
            continue
        if forward_ad.unpack_dual(value).tangent is not None:  # type: ignore[no-untyped-call]
            raise NotImplementedError(
                "derivatives in forward mode (torch.func.jvp, jacfwd, torch.autograd.forward_ad) are not there for "
                "quantized layers; use reverse mode: torch.autograd, x.requires_grad_()"
            )


def _check_weight_place(backend: Backend, device: torch.device) -> None:
    if device.type not in backend.capabilities.devices:
        raise ValueError(
            f"weight: expected one on {' or '.join(sorted(backend.capabilities.devices))} (backend "
            f"{backend.name!r}), got one on {device}"
        )


def _check_settings(form: WeightForm, bias: object, activation_mode: object, epilogue: object) -> None:
    check_choice("activation_mode", activation_mode, ACTIVATION_MODES)
    check_choice("epilogue", epilogue, EPILOGUES)
    if bias is not None:
        outputs = form.shape[0]
        values = _check_floats("bias", bias, f"[{outputs}]")
        if values.shape != (outputs,):
            raise ValueError(f"bias: expected [{outputs}], one value for each output, got {describe(values)}")


def _check_declared(
    backend: Backend, form: WeightForm, settings: Mapping[str, tuple[object, Collection[object]]]
) -> None:
    """The form of a weight, and further settings with what is declared of them."""
    declared = backend.capabilities
    wanted: dict[str, tuple[object, Collection[object]]] = {
        "bits": (form.bits, declared.linear_bits),
        "zero": (form.zero, declared.zero_kinds),
        "scale dtype": (form.scale_dtype, declared.scale_dtypes),
        **settings,
    }
    for name, (value, values) in wanted.items():
        if value not in values:
            raise UnsupportedOperationError(
                f"backend {backend.name!r} does not declare {name}={value!r} for linear; it declares "
                f"{sorted(values, key=str)}"
            )
    if form.group_size % declared.group_size_multiple and form.group_size != form.shape[1]:
        raise UnsupportedOperationError(
            f"backend {backend.name!r} does not declare group_size={form.group_size} for linear; it declares multiples "
            f"of {declared.group_size_multiple}, and one group for a row"
        )


def _check_floats(name: str, value: object, form: str) -> torch.Tensor:
    expected = f"{name}: expected {dtype_names(SCALE_DTYPES)} {form}"
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{expected}, got {type(value).__name__}")
    if value.dtype not in SCALE_DTYPES:
        raise TypeError(f"{expected}, got {describe(value)}")
    return value
