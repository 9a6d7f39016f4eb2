"""A convolution on group-quantized weights: patches of the image, multiplied by the linear of the backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Literal

import torch
import torch.nn.functional as F

from ..checks import check_int, describe
from ..quantize_config import QuantizeConfig
from ..quantized_weight import QuantizedWeight
from ..weight_checks import check_choice
from .quantized_linear import QuantizedLinear

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

PATCH_VALUES = 1 << 19
"""Values of patches that exist at once, unless one row of the result takes more: 2 MiB of float32."""

Pair = int | tuple[int, int]


class QuantizedConv2d(torch.nn.Module):
    """``torch.nn.Conv2d`` on group-quantized weights (docs/numerics.md, section 10).

    Each position of the result is a row of `bittensor.linear`, whose columns are the values under the kernel: in the
    order kernel row, kernel column, channel, so that a patch is made of runs of channels. Patches are made for a part
    of the result at a time. Each of `groups` has a `QuantizedLinear` of its own, in `linears`, whose entries make up
    the state_dict; many groups of few channels, as in a depthwise convolution, are therefore slow.

    Args:
        weights: for each group ``[out_channels / groups, kernel height * kernel width * in_channels / groups]``.
        bias: ``[out_channels]`` or None.
        in_channels: channels of the input.
        kernel_size, stride, padding, dilation, padding_mode: as in ``torch.nn.Conv2d``; padding="same" goes with
            stride 1 only.
        activation_mode, epilogue: as in `bittensor.linear`.

    Raises:
        TypeError, ValueError: as `bittensor.nn.QuantizedLinear`, or numbers that do not fit together.

    >>> import torch, bittensor
    >>> convolution = torch.nn.Conv2d(16, 32, 3, padding="same", bias=False)
    >>> layer = bittensor.nn.QuantizedConv2d.from_conv(convolution, bits=8, group_size=16)
    >>> layer
    QuantizedConv2d(
      16, 32, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1)
      (linears): ModuleList(
        (0): QuantizedLinear(in_features=144, out_features=32, bits=8, group_size=16, zero='symmetric',
    scales=float32, bias=False, activation_mode='int8')
      )
    )
    >>> x = torch.randn(2, 16, 7, 9)
    >>> (layer(x) - convolution(x)).abs().max() < 0.1
    tensor(True)
    """

    def __init__(
        self,
        weights: Sequence[QuantizedWeight],
        bias: torch.Tensor | None = None,
        *,
        in_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | Literal["same", "valid"] = 0,
        dilation: Pair = 1,
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
        groups = len(weights)
        if groups < 1 or in_channels < 1 or in_channels % groups:
            raise ValueError(f"weights: expected one for each group, of {in_channels} channels in all, got {groups}")
        shape, columns = weights[0].shape, in_channels // groups * self.kernel_size[0] * self.kernel_size[1]
        if shape[1] != columns or any(weight.shape != shape for weight in weights):
            raise ValueError(
                f"weights: expected [out_channels / groups, {columns}] for each group, got "
                f"{', '.join(str(list(weight.shape)) for weight in weights)}"
            )
        self.out_channels = groups * shape[0]
        if bias is not None and bias.shape != (self.out_channels,):
            raise ValueError(f"bias: expected [{self.out_channels}], got {describe(bias)}")
        biases = [None] * groups if bias is None else list(torch.split(bias.detach(), shape[0]))
        self.linears = torch.nn.ModuleList(
            QuantizedLinear(weight, each, activation_mode=activation_mode, epilogue=epilogue)
            for weight, each in zip(weights, biases, strict=True)
        )

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
        weights = [config.quantize(group) for group in torch.split(rows, len(rows) // convolution.groups)]
        layer = cls(
            weights,
            None if convolution.bias is None else convolution.bias.detach().clone(),
            in_channels=convolution.in_channels,
            kernel_size=convolution.kernel_size,  # type: ignore[arg-type]
            stride=convolution.stride,  # type: ignore[arg-type]
            padding=convolution.padding,  # type: ignore[arg-type]
            dilation=convolution.dilation,  # type: ignore[arg-type]
            padding_mode=convolution.padding_mode,
            activation_mode=config.activation_mode,
        )
        return layer.train(convolution.training)

    @property
    def groups(self) -> int:
        """Groups of channels that do not mix."""
        return len(self.linears)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights: what is saved."""
        return sum(linear.weight.nbytes for linear in self._layers())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Floats ``[..., in_channels, H, W]``, with or without a batch, to ``[..., out_channels, H', W']``.

        The result has channels-last strides, in which it was computed.
        """
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(f"x: expected [..., {self.in_channels}, H, W] with or without a batch, got {describe(x)}")
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        images = x if x.dim() == 4 else x[None]
        images = F.pad(images, self.padding, mode).permute(0, 2, 3, 1).contiguous()
        height, width = (
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, dilation, kernel, stride in zip(
                images.shape[1:3], self.dilation, self.kernel_size, self.stride, strict=True
            )
        )
        if height < 1 or width < 1:
            raise ValueError(f"x: expected an image as large as the kernel of {self.kernel_size}, got {describe(x)}")
        y = torch.cat([part.flatten(0, 2) for part in self._parts(images, height, width)])
        y = y.view(len(images), height, width, self.out_channels).permute(0, 3, 1, 2)
        return y if x.dim() == 4 else y[0]

    def _parts(self, images: torch.Tensor, height: int, width: int) -> Iterator[torch.Tensor]:
        """The result piece by piece, ``[images, rows, width, out_channels]``: whole images, or rows of one."""
        count, row_values = len(images), width * self.in_channels * self.kernel_size[0] * self.kernel_size[1]
        rows = min(height, max(1, PATCH_VALUES // row_values))
        together = max(1, PATCH_VALUES // (row_values * height)) if rows == height else 1
        if not count:
            yield self._multiply(images, height, width)
        for first, row in product(range(0, count, together), range(0, height, rows)):
            taken = min(rows, height - row)
            yield self._multiply(images[first : first + together, row * self.stride[0] :], taken, width)

    def _multiply(self, images: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """The result of ``[images, H, W, in_channels]``, of which the kernel has `height` times `width` positions."""
        for dimension, taken in ((1, height), (2, width)):
            kernel, stride, dilation = (each[dimension - 1] for each in (self.kernel_size, self.stride, self.dilation))
            reach = dilation * (kernel - 1) + 1
            images = images.narrow(dimension, 0, (taken - 1) * stride + reach)
            images = images.unfold(dimension, reach, stride)[..., ::dilation]
        # A view [images, rows, columns, channels, kernel rows, kernel columns]. Of a row of the kernel all columns and
        # channels follow each other in memory, unless it is dilated, and are copied as one run.
        if self.groups == 1:
            return torch.as_tensor(self.linears[0](images.permute(0, 1, 2, 4, 5, 3).flatten(3)))
        of_groups = torch.unflatten(images, 3, (self.groups, -1)).permute(3, 0, 1, 2, 5, 6, 4).flatten(4)
        return torch.cat([linear(part) for linear, part in zip(self.linears, of_groups, strict=True)], dim=3)

    def _layers(self) -> list[QuantizedLinear]:
        return [linear for linear in self.linears if isinstance(linear, QuantizedLinear)]

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
