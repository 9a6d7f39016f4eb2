"""A linear layer on integer codes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..checks import check_int
from ..ops import multiply_codes, pack_weights, scalar_scale


class PackedLinear(torch.nn.Module):
    """A linear layer on codes: packed weights in, packed codes out (`bittensor.packed_matmul`).

    The packed weight, the bias and the scale are buffers: they move, save and load with the module. The zero points
    are part of the module's configuration, as `bits` is.

    Args:
        weight: uint8 codes ``[out_features, in_features]``.
        bias: uint8 or int32 ``[out_features]``, or None.
        bits: 1, 2, 4 or 8.
        x_zero, weight_zero, scale, out_zero, out_dtype: as in `bittensor.packed_matmul`.

    Raises:
        TypeError, ValueError: as `bittensor.pack_weights` and `bittensor.packed_matmul`, when the layer is built.

    >>> import torch, bittensor
    >>> weight = torch.tensor([[1, 0], [0, 1], [1, 1]], dtype=torch.uint8)
    >>> layer = bittensor.PackedLinear(weight, bias=torch.tensor([1, 1, 1], dtype=torch.uint8))
    >>> layer
    PackedLinear(in_features=2, out_features=3, bits=4, bias=True)
    >>> bittensor.unpack_tensor(layer(torch.tensor([[3, 4]], dtype=torch.uint8)), 1, 3)
    tensor([[4, 5, 8]], dtype=torch.uint8)
    """

    packed_weight: torch.Tensor
    bias: torch.Tensor | None
    scale: torch.Tensor | None

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        bits: int = 4,
        x_zero: int = 0,
        weight_zero: int = 0,
        scale: torch.Tensor | float | None = None,
        out_zero: int = 0,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(weight, torch.Tensor) and weight.dim() != 2:
            raise ValueError(f"weight: expected uint8 [out_features, in_features], got shape {list(weight.shape)}")
        self.register_buffer("packed_weight", pack_weights(weight, bits))
        self.register_buffer("bias", bias)
        if isinstance(scale, (float, int)):
            scale = scalar_scale(scale)
        self.register_buffer("scale", scale)
        self.out_features, self.in_features = weight.shape
        self.bits = check_int("bits", bits)
        self.x_zero = check_int("x_zero", x_zero)
        self.weight_zero = check_int("weight_zero", weight_zero)
        self.out_zero = check_int("out_zero", out_zero)
        self.out_dtype = out_dtype
        # An empty batch computes nothing and checks every argument now, where the mistake is.
        self.forward(weight.new_empty((0, self.in_features)))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> PackedLinear:
        # `.half()` and its like convert every floating-point buffer; the scale is float32 by contract.
        scale = self.scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if scale is not None and self.scale is not None and self.scale.dtype is not torch.float32:
            self.scale = scale.to(self.scale.device)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Codes uint8 ``[..., in_features]`` or packed int64 to packed int64 codes of `out_features`."""
        buffers = self._buffers  # three look-ups through Module.__getattr__ would show in the call of a tiny layer
        try:
            weight, bias, scale = buffers["packed_weight"], buffers["bias"], buffers["scale"]
        except KeyError:  # a parameter or a parametrization takes the place of one
            weight, bias, scale = self.packed_weight, self.bias, self.scale
        return multiply_codes(
            x,
            weight,  # type: ignore[arg-type]
            bias,
            self.bits,
            self.in_features,
            self.x_zero,
            self.weight_zero,
            scale,
            self.out_zero,
            self.out_dtype,
        )

    def extra_repr(self) -> str:
        settings: dict[str, object] = {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bits": self.bits,
            "bias": self.bias is not None,
        }
        for name in ("x_zero", "weight_zero", "out_zero"):
            if getattr(self, name):
                settings[name] = getattr(self, name)
        if self.scale is not None:
            settings["scale"] = f"{self.scale.numel()} value" + "s" * (self.scale.numel() != 1)
        if self.out_dtype is not None:
            settings["out_dtype"] = self.out_dtype
        return ", ".join(f"{name}={value}" for name, value in settings.items())
