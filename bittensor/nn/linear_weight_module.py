"""Modules that hold what a linear layer has: a group-quantized weight, a bias, and how it computes."""

from __future__ import annotations

from contextlib import suppress

import torch

from ..checks import dtype_name
from ..errors import UnsupportedOperationError
from ..linear_checks import check_layer, check_product
from ..quantized_weight import QuantizedWeight
from ..registry import current_backend
from .weight_module import WeightModule


class LinearWeightModule(WeightModule):
    """A `WeightModule` with the other operands of `bittensor.linear`; subclasses say what they do with them.

    Args:
        weight: ``[out_features, in_features]``.
        bias: float32, float16 or bfloat16 ``[out_features]``, or None. It becomes a parameter that needs no gradient.
        activation_mode, epilogue: as in `bittensor.linear`.

    Raises:
        TypeError, ValueError: as `bittensor.linear`.
    """

    bias: torch.nn.Parameter | None

    def __init__(
        self,
        weight: QuantizedWeight,
        bias: torch.Tensor | None = None,
        *,
        activation_mode: str = "int8",
        epilogue: str | None = None,
    ) -> None:
        super().__init__(check_layer(weight, bias, activation_mode, epilogue))
        parameter = None if bias is None else torch.nn.Parameter(bias.detach(), requires_grad=False)
        self.register_parameter("bias", parameter)
        self.activation_mode = activation_mode
        self.epilogue = epilogue
        self._prepare()

    def _prepare(self) -> None:
        if self.weight.device.type in (backend := current_backend()).capabilities.devices:
            with suppress(UnsupportedOperationError):  # of another backend's layer; the call says so if it is not
                check_product(
                    backend,
                    torch.empty(0, self.in_features, dtype=torch.float32, device=self.weight.device),
                    self.weight.form,
                    self.weight.device,
                    None,
                    self.activation_mode,
                    self.epilogue,
                )
                self.weight.prepared_for(backend)

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self.weight.shape[0]

    def extra_repr(self) -> str:
        form = self.weight.form
        settings = (
            f"in_features={self.in_features}, out_features={self.out_features}, bits={form.bits}, "
            f"group_size={form.group_size}, zero={form.zero!r}, scales={dtype_name(form.scale_dtype)}, "
            f"bias={self.bias is not None}, activation_mode={self.activation_mode!r}"
        )
        return settings if self.epilogue is None else f"{settings}, epilogue={self.epilogue!r}"
