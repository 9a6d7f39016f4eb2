"""A linear layer on a group-quantized weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch

from ..checks import dtype_name
from ..errors import UnsupportedOperationError
from ..form_entry import FORM_VERSION, form_entry
from ..linear_checks import check_layer, check_product
from ..ops import linear
from ..prepared_weight import SCALE_DTYPES, ZERO_KINDS, WeightForm
from ..quantize_config import QuantizeConfig
from ..quantized_weight import QuantizedWeight
from ..registry import current_backend

WEIGHT_ENTRIES = ("words", "scales", "zeros", "offsets", "form")
"""Entries of a state_dict that make up the weight; zeros and offsets where its form has them."""


class QuantizedLinear(torch.nn.Module):
    """``torch.nn.Linear`` on a group-quantized weight: `bittensor.linear` as a module.

    The weight is held once, in the layout of the backend that last used it. A state_dict holds it in canonical form,
    whichever backend that was: ``words``, ``scales``, ``zeros`` or ``offsets``, and ``form``, int64 numbers that tell
    its shape, bits, group size, kind of zero and scale dtype; `load_state_dict` refuses another form. Beside them
    there is ``bias``. ``.to(dtype)`` converts the bias only. Training mode changes nothing: the weight is constant.

    Args:
        weight: ``[out_features, in_features]``.
        bias: float32, float16 or bfloat16 ``[out_features]``, or None. It becomes a parameter that needs no gradient.
        activation_mode, epilogue: as in `bittensor.linear`.

    Raises:
        TypeError, ValueError: as `bittensor.linear`.

    >>> import torch, bittensor
    >>> layer = bittensor.nn.QuantizedLinear.from_linear(torch.nn.Linear(64, 32), bits=4, group_size=32)
    >>> layer
    QuantizedLinear(in_features=64, out_features=32, bits=4, group_size=32, zero='symmetric', scales=float32,
    bias=True, activation_mode='int8')
    >>> layer(torch.randn(3, 64)).shape
    torch.Size([3, 32])
    """

    weight: QuantizedWeight
    bias: torch.nn.Parameter | None

    def __init__(
        self,
        weight: QuantizedWeight,
        bias: torch.Tensor | None = None,
        *,
        activation_mode: str = "int8",
        epilogue: str | None = None,
    ) -> None:
        super().__init__()
        self.weight = check_layer(weight, bias, activation_mode, epilogue)
        parameter = None if bias is None else torch.nn.Parameter(bias.detach(), requires_grad=False)
        self.register_parameter("bias", parameter)
        self.activation_mode = activation_mode
        self.epilogue = epilogue
        self._prepare()

    def _prepare(self) -> None:
        """Put the weight into the layout of the current backend now: a compiled program depends on the layout."""
        if self.weight.device.type in (backend := current_backend()).capabilities.devices:
            with suppress(UnsupportedOperationError):  # of another backend's layer; the call says so if it is not
                check_product(
                    backend,
                    torch.empty(0, self.in_features, device=self.weight.device),
                    self.weight.form,
                    self.weight.device,
                    None,
                    self.activation_mode,
                    self.epilogue,
                )
                self.weight.prepared_for(backend)

    @classmethod
    def from_linear(
        cls, linear: torch.nn.Linear, config: QuantizeConfig | None = None, **settings: Any
    ) -> QuantizedLinear:
        """Quantize a layer as `config` says, or a `bittensor.QuantizeConfig` of the `settings`; the layer is kept.

        Raises:
            TypeError, ValueError: as `bittensor.quantize`, or both `config` and `settings` were given.
        """
        if config is not None and settings:
            raise TypeError(f"config: expected either a config or its settings, got both: {sorted(settings)}")
        config = QuantizeConfig(**settings) if config is None else config
        bias = None if linear.bias is None else linear.bias.detach().clone()
        layer = cls(config.quantize(linear.weight), bias, activation_mode=config.activation_mode)
        return layer.train(linear.training)

    @classmethod
    def from_quantized(
        cls, weight: QuantizedWeight, bias: torch.Tensor | None = None, **settings: Any
    ) -> QuantizedLinear:
        """The layer of a weight that is quantized already; the same as the class itself.

        >>> import torch, bittensor
        >>> weight = bittensor.quantize(torch.eye(8), group_size=None)
        >>> bittensor.nn.QuantizedLinear.from_quantized(weight)(torch.full((1, 8), 2.0))
        tensor([[2., 2., 2., 2., 2., 2., 2., 2.]])
        """
        return cls(weight, bias, **settings)

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self.weight.shape[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Floats ``[..., in_features]`` to ``[..., out_features]`` of the same dtype."""
        return linear(x, self.weight, self.bias, self.activation_mode, self.epilogue)

    def extra_repr(self) -> str:
        form = self.weight.form
        settings = (
            f"in_features={self.in_features}, out_features={self.out_features}, bits={form.bits}, "
            f"group_size={form.group_size}, zero={form.zero!r}, scales={dtype_name(form.scale_dtype)}, "
            f"bias={self.bias is not None}, activation_mode={self.activation_mode!r}"
        )
        return settings if self.epilogue is None else f"{settings}, epilogue={self.epilogue!r}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> QuantizedLinear:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = self.weight.device
        if fn(torch.empty(0, dtype=torch.int64, device=device)).device != device:
            self.weight = self.weight.convert(lambda tensor: fn(_as_integers(tensor)).view(tensor.dtype))
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in self.weight.tensors().items():
            destination[prefix + name] = tensor
        destination[prefix + "form"] = form_entry(self.weight.form)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        keys = {prefix + name for name in WEIGHT_ENTRIES}
        others = {key: value for key, value in state_dict.items() if key not in keys}
        super()._load_from_state_dict(others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        given = {name: state_dict[prefix + name] for name in WEIGHT_ENTRIES if prefix + name in state_dict}
        expected = {"zeros": "integer", "offsets": "float"}
        needed = [name for name in WEIGHT_ENTRIES if expected.get(name, self.weight.zero) == self.weight.zero]
        missing = [prefix + name for name in needed if name not in given]
        if "form" in given and (error := _form_error(given["form"], self.weight.form)):
            error_msgs.append(f"{prefix}form: {error}")
        elif missing:
            missing_keys.extend(missing)
        else:
            unexpected_keys.extend(prefix + name for name in given if name not in needed)
            assign = local_metadata.get("assign_to_params_buffers", False)
            tensors = {name: given[name] if assign else given[name].clone() for name in needed if name != "form"}
            try:
                self.weight = _weight_of(tensors, self.weight, assign)
                self._prepare()
            except (TypeError, ValueError) as error:
                error_msgs.append(f"{prefix}{error}")


def _as_integers(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of floats: `Module.to` converts floats, and moves integers as they are."""
    return tensor.view({4: torch.int32, 2: torch.int16}[tensor.itemsize]) if tensor.is_floating_point() else tensor


def _weight_of(tensors: dict[str, torch.Tensor], like: QuantizedWeight, assign: bool) -> QuantizedWeight:
    """A weight of `tensors`, of the form of `like`, and on its device unless they are taken over as they are."""
    form = like.form
    weight = QuantizedWeight(**tensors, shape=form.shape, group_size=form.group_size, bits=form.bits)
    if weight.form != form:
        raise ValueError(f"scales: expected {dtype_name(form.scale_dtype)}, got {dtype_name(weight.form.scale_dtype)}")
    return weight if assign else weight.to(like.device)


def _form_error(entry: object, form: WeightForm) -> str | None:
    """What is wrong with the entry "form" for a layer of `form`; None if nothing is."""
    expected = form_entry(form)
    if not isinstance(entry, torch.Tensor) or entry.dtype is not torch.int64 or entry.shape != expected.shape:
        return f"expected int64 [{len(expected)}], the form of a quantized weight"
    version, *numbers = entry.tolist()
    if version != FORM_VERSION:
        return f"expected version {FORM_VERSION} of the format, got {version}"
    names = ("out_features", "in_features", "bits", "group_size", "zero", "scale dtype")
    choices: dict[str, tuple[object, ...]] = {"zero": ZERO_KINDS, "scale dtype": SCALE_DTYPES}

    def shown(name: str, number: int) -> object:
        return choices[name][number] if name in choices and 0 <= number < len(choices[name]) else number

    wrong = [
        f"{name}={shown(name, own)}, but the saved weight has {shown(name, number)}"
        for name, number, own in zip(names, numbers, expected.tolist()[1:], strict=True)
        if number != own
    ]
    return f"the layer has {'; '.join(wrong)}" if wrong else None
