"""A convolution on a group-quantized weight: the linear of the patches of an image."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F

from ..checks import check_int, check_place, describe
from ..convolution import ConvolutionGeometry
from ..ops import conv2d
from ..quantize_config import QuantizeConfig
from ..quantized_weight import QuantizedWeight
from ..registry import current_backend
from ..weight_checks import check_choice
from .quantized_linear import QuantizedLinear

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

Pair = int | tuple[int, int]


class QuantizedConv2d(torch.nn.Module):
    """``torch.nn.Conv2d`` on a group-quantized weight (docs/numerics.md, section 10).

    Each position of the result is a row of `bittensor.linear`, whose columns are the values under the kernel: in the
    order kernel row, kernel column, channel. The weight and the bias are those of a `QuantizedLinear`, in `linear`,
    whose entries make up the state_dict; with several groups of channels, each has its rows of the weight.

    Args:
        weight: ``[out_channels, kernel height * kernel width * in_channels / groups]``.
        bias: ``[out_channels]`` or None.
        in_channels: channels of the input.
        kernel_size, stride, padding, dilation, groups, padding_mode: as in ``torch.nn.Conv2d``; padding="same" goes
            with stride 1 only.
        activation_mode, epilogue: as in `bittensor.linear`.

    Raises:
        TypeError, ValueError: as `bittensor.nn.QuantizedLinear`, or numbers that do not fit together.

    >>> import torch, bittensor
    >>> convolution = torch.nn.Conv2d(16, 32, 3, padding="same", bias=False)
    >>> layer = bittensor.nn.QuantizedConv2d.from_conv(convolution, bits=8, group_size=16)
    >>> layer
    QuantizedConv2d(
      16, 32, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1)
      (linear): QuantizedLinear(in_features=144, out_features=32, bits=8, group_size=16, zero='symmetric',
    scales=float32, bias=False, activation_mode='int8')
    )
    >>> x = torch.randn(2, 16, 7, 9)
    >>> (layer(x) - convolution(x)).abs().max() < 0.1
    tensor(True)
    """

    def __init__(
        self,
        weight: QuantizedWeight,
        bias: torch.Tensor | None = None,
        *,
        in_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | Literal["same", "valid"] = 0,
        dilation: Pair = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        activation_mode: str = "int8",
        epilogue: str | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size = _pair("kernel_size", kernel_size, 1)
        self.stride = _pair("stride", stride, 1)
        self.dilation = _pair("dilation", dilation, 1)
        self.padding = self._sides(padding)
        check_choice("padding_mode", padding_mode, PADDING_MODES)
        self.padding_mode = padding_mode
        self.in_channels = check_int("in_channels", in_channels)
        self.groups = check_int("groups", groups)
        self.linear = QuantizedLinear(weight, bias, activation_mode=activation_mode, epilogue=epilogue)
        self.out_channels = weight.shape[0]
        if groups < 1 or in_channels < 1 or in_channels % groups or self.out_channels % groups:
            raise ValueError(
                f"groups: expected a divisor of in_channels={in_channels} and out_channels={self.out_channels}, got "
                f"{groups}"
            )
        columns = in_channels // groups * self.kernel_size[0] * self.kernel_size[1]
        if weight.shape[1] != columns:
            raise ValueError(f"weight: expected [out_channels, {columns}], got {list(weight.shape)}")

    def _sides(self, padding: object) -> tuple[int, int, int, int]:
        """Left, right, top and bottom: the order of ``torch.nn.functional.pad``."""
        if isinstance(padding, str):
            check_choice("padding", padding, ("same", "valid"))
            if padding == "valid":
                return (0, 0, 0, 0)
            if self.stride != (1, 1):
                raise ValueError(f'padding: "same" goes with stride 1 only, got stride {self.stride}')
            height, width = (d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))
            return (width // 2, width - width // 2, height // 2, height - height // 2)
        height, width = _pair("padding", padding, 0)
        return (width, width, height, height)

    @classmethod
    def from_conv(
        cls, convolution: torch.nn.Conv2d, config: QuantizeConfig | None = None, **settings: Any
    ) -> QuantizedConv2d:
        """Quantize a convolution as `config` says, or a `bittensor.QuantizeConfig` of the `settings`; it is kept.

        Raises:
            TypeError, ValueError: as `bittensor.quantize`, or both `config` and `settings` were given.
        """
        if config is not None and settings:
            raise TypeError(f"config: expected either a config or its settings, got both: {sorted(settings)}")
        config = QuantizeConfig(**settings) if config is None else config
        rows = convolution.weight.detach().permute(0, 2, 3, 1).flatten(1)
        layer = cls(
            config.quantize(rows),
            None if convolution.bias is None else convolution.bias.detach().clone(),
            in_channels=convolution.in_channels,
            kernel_size=convolution.kernel_size,  # type: ignore[arg-type]
            stride=convolution.stride,  # type: ignore[arg-type]
            padding=convolution.padding,  # type: ignore[arg-type]
            dilation=convolution.dilation,  # type: ignore[arg-type]
            groups=convolution.groups,
            padding_mode=convolution.padding_mode,
            activation_mode=config.activation_mode,
        )
        return layer.train(convolution.training)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight: what is saved."""
        return self.linear.weight.nbytes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Floats ``[..., in_channels, H, W]``, with or without a batch, to ``[..., out_channels, H', W']``.

        The result has channels-last strides, in which it was computed.
        """
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"x: expected a tensor [..., {self.in_channels}, H, W], got {type(x).__name__}")
        check_place(current_backend(), "x", x)
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(f"x: expected [..., {self.in_channels}, H, W] with or without a batch, got {describe(x)}")
        images, padding = x if x.dim() == 4 else x[None], self.padding
        if self.padding_mode != "zeros":
            try:
                images, padding = F.pad(images, padding, self.padding_mode), (0, 0, 0, 0)
            except RuntimeError as error:
                least = f"x: expected an image large enough for {self.padding_mode} padding by {self.padding}"
                raise ValueError(f"{least}, got {describe(x)}") from error
        images = images.permute(0, 2, 3, 1).contiguous()
        geometry = ConvolutionGeometry(self.kernel_size, self.stride, padding, self.dilation, self.groups)
        if min(geometry.result_size(images.shape[1], images.shape[2])) < 1:
            raise ValueError(f"x: expected an image as large as the kernel of {self.kernel_size}, got {describe(x)}")
        linear = self.linear
        y = conv2d(images, linear.weight, linear.bias, geometry, linear.activation_mode, linear.epilogue)
        return (y if x.dim() == 4 else y[0]).movedim(-1, -3)

    def extra_repr(self) -> str:
        settings: dict[str, object] = {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
        }
        if self.dilation != (1, 1):
            settings["dilation"] = self.dilation
        if self.groups > 1:
            settings["groups"] = self.groups
        if self.padding_mode != "zeros":
            settings["padding_mode"] = self.padding_mode
        listed = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        return f"{self.in_channels}, {self.out_channels}, {listed}"


def _pair(name: str, value: object, least: int) -> tuple[int, int]:
    """One number for both dimensions, or one for each."""
    numbers = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(numbers) != 2 or any(check_int(name, number) < least for number in numbers):
        raise ValueError(f"{name}: expected an int of at least {least}, or two, got {value!r}")
    return numbers[0], numbers[1]
