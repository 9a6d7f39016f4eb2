"""The kernels of the C++ backend for transformers and convolutions."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bittensor.convolution import ConvolutionGeometry
from bittensor.errors import UnsupportedOperationError
from bittensor.fused import DecoderLayers, FusedOperations
from bittensor.prepared_weight import PreparedWeight

from .operators import EPILOGUES, FLOAT_MODES

_Operator = Callable[..., torch.Tensor]
_fused_linear: _Operator = torch.ops.bittensor_cpp.fused_linear.default
_feed_forward: _Operator = torch.ops.bittensor_cpp.feed_forward.default
_attend: _Operator = torch.ops.bittensor_cpp.attend.default
_attend_bidirectional: _Operator = torch.ops.bittensor_cpp.attend_bidirectional.default
_conv2d: _Operator = torch.ops.bittensor_cpp.conv2d.default
_decoder_layers: _Operator = torch.ops.bittensor_cpp.decoder_layers.default


class CppFusedOperations(FusedOperations):
    """Each operation is one call into `libbittensor`, on the instruction set `isa` of the operators."""

    def __init__(self, isa: int) -> None:
        self._isa = isa

    def linear(
        self,
        x: torch.Tensor,
        weight: PreparedWeight,
        activation_mode: str,
        norm: tuple[torch.Tensor, float] | None = None,
        gated: bool = False,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        float_mode = _float_mode(activation_mode)
        norm_weight, epsilon = (None, 0.0) if norm is None else norm
        return _fused_linear(
            x,
            weight.tensors[0],
            weight.form.shape[0],
            norm_weight,
            epsilon,
            gated,
            residual,
            float_mode,
            self._isa,
        )

    def feed_forward(
        self,
        x: torch.Tensor,
        up: PreparedWeight,
        up_bias: torch.Tensor | None,
        epilogue: str | None,
        down: PreparedWeight,
        down_bias: torch.Tensor | None,
        activation_mode: str,
    ) -> torch.Tensor:
        return _feed_forward(
            x,
            up.tensors[0],
            up_bias,
            down.tensors[0],
            down.form.shape[0],
            down_bias,
            _float_mode(activation_mode),
            _activation(epilogue),
            self._isa,
        )

    def attend(
        self,
        projections: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        keys: torch.Tensor,
        values: torch.Tensor,
        position: int,
        heads: int,
    ) -> torch.Tensor:
        return _attend(projections, *rotation, keys, values, position, heads, self._isa)

    def attend_bidirectional(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_mask: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        return _attend_bidirectional(query, key, value, key_mask, scale, self._isa)

    def conv2d(
        self,
        images: torch.Tensor,
        weight: PreparedWeight,
        bias: torch.Tensor | None,
        geometry: ConvolutionGeometry,
        activation_mode: str,
        epilogue: str | None,
    ) -> torch.Tensor:
        return _conv2d(
            images,
            weight.tensors[0],
            weight.form.shape[0],
            bias,
            geometry.kernel_size,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            geometry.groups,
            _float_mode(activation_mode),
            _activation(epilogue),
            self._isa,
        )

    def decode(
        self,
        x: torch.Tensor,
        layers: DecoderLayers,
        rotation: tuple[torch.Tensor, torch.Tensor],
        keys: torch.Tensor,
        values: torch.Tensor,
        position: int,
        heads: int,
    ) -> torch.Tensor:
        mode = _float_mode(layers.activation_mode)
        return _decoder_layers(
            x, layers.norms, layers.tensors, layers.epsilon, *rotation, keys, values, position, heads, mode, self._isa
        )


def _float_mode(activation_mode: str) -> bool:
    if activation_mode not in FLOAT_MODES:
        raise UnsupportedOperationError(
            f"activation_mode: expected one of {list(FLOAT_MODES)}, got {activation_mode!r}"
        )
    return FLOAT_MODES[activation_mode]


def _activation(epilogue: str | None) -> int:
    if epilogue not in EPILOGUES:
        raise UnsupportedOperationError(f"epilogue: expected one of {list(EPILOGUES)}, got {epilogue!r}")
    return EPILOGUES[epilogue]
