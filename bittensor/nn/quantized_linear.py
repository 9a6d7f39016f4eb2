"""A linear layer on a group-quantized weight."""

from __future__ import annotations

from typing import Any

import torch

from ..linear_checks import check_layer
from ..ops import linear
from ..quantize_config import QuantizeConfig
from ..quantized_weight import QuantizedWeight
from .linear_weight_module import LinearWeightModule


class QuantizedLinear(LinearWeightModule):
    """``torch.nn.Linear`` on a group-quantized weight: `bittensor.linear` as a module.

    The weight is held, saved and shared as `bittensor.nn.WeightModule` says; beside it a state_dict has ``bias``.
    ``.to(dtype)`` converts the bias only. Training mode changes nothing: the weight is constant.

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

    def set_epilogue(self, epilogue: str | None) -> None:
        """End with this epilogue from now on, as if the layer had been built with it.

        Raises:
            ValueError: as `bittensor.linear`.

        >>> import torch, bittensor
        >>> layer = bittensor.QuantizedLinear.from_linear(torch.nn.Linear(64, 32), group_size=32)
        >>> x = torch.randn(3, 64)
        >>> y = layer(x)
        >>> layer.set_epilogue("relu")
        >>> torch.equal(layer(x), y.relu())
        True
        """
        check_layer(self.weight, self.bias, self.activation_mode, epilogue)
        self.epilogue = epilogue
        self._prepare()

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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Floats ``[..., in_features]`` to ``[..., out_features]`` of the same dtype."""
        own = self.__dict__  # an attribute of a module takes 0.1 us, a parameter 0.5
        try:
            bias = own["_parameters"]["bias"]
        except KeyError:  # a parametrization takes its place
            bias = self.bias
        return linear(x, own["weight"], bias, own["activation_mode"], own["epilogue"])
