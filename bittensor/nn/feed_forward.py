"""The two linear layers of a feed-forward network, computed in one step where the second is called."""

from __future__ import annotations

import torch

from ..ops import feed_forward
from .linear_weight_module import LinearWeightModule
from .quantized_linear import QuantizedLinear


class FeedForwardUp(LinearWeightModule):
    """The first layer of a feed-forward network: it holds weight and bias, and leaves the product to `FeedForwardDown`.

    It returns its input. Between it and the second layer there must be nothing, therefore; see
    `bittensor.transformers.fuse_feed_forward_`, which makes such pairs. A state_dict has what the layer had.

    Args:
        linear: whose weight and bias it takes over, as the same objects.

    Raises:
        TypeError: `linear` is not a `QuantizedLinear`.
    """

    def __init__(self, linear: QuantizedLinear) -> None:
        _check_type("linear", linear, QuantizedLinear)
        super().__init__(linear.weight, linear.bias, activation_mode=linear.activation_mode, epilogue=linear.epilogue)
        self.bias = linear.bias
        self.train(linear.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` itself."""
        return x

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, computed by FeedForwardDown"


class FeedForwardDown(LinearWeightModule):
    """The second layer of a feed-forward network, which computes the first one too: `FeedForwardUp`.

    The backend does both in one step (`bittensor.fused.FusedOperations.feed_forward`), with the bits of one layer after
    the other. Where a gradient is recorded, they are computed one after the other.

    The first layer is no submodule of this one: it stays where it is in the model. Copies of a model hold together.

    Args:
        linear: whose weight and bias it takes over, as the same objects.
        up: the first layer.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: the layers do not fit, have different activation modes, or `linear` has an epilogue.

    >>> import torch, bittensor
    >>> up, down = (bittensor.QuantizedLinear.from_linear(torch.nn.Linear(*s)) for s in ((128, 256), (256, 128)))
    >>> up.set_epilogue("gelu")
    >>> x = torch.randn(3, 128)
    >>> y = down(up(x))
    >>> first = FeedForwardUp(up)
    >>> model = torch.nn.Sequential(first, FeedForwardDown(down, first))
    >>> torch.equal(model(x), y)
    True
    """

    def __init__(self, linear: QuantizedLinear, up: FeedForwardUp) -> None:
        _check_type("linear", linear, QuantizedLinear)
        _check_type("up", up, FeedForwardUp)
        if up.out_features != linear.in_features:
            raise ValueError(f"linear: expected {up.out_features} columns, as up has outputs, got {linear.in_features}")
        if up.activation_mode != linear.activation_mode:
            raise ValueError(
                f"linear: expected the activation mode of up, {up.activation_mode!r}, got {linear.activation_mode!r}"
            )
        if linear.epilogue is not None:
            raise ValueError(f"linear: expected a layer without epilogue, got {linear.epilogue!r}")
        super().__init__(linear.weight, linear.bias, activation_mode=linear.activation_mode)
        self.bias = linear.bias
        self._up = (up,)  # in a tuple, where torch.nn.Module does not find it
        self.train(linear.training)

    @property
    def up(self) -> FeedForwardUp:
        """The first layer."""
        return self._up[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the first layer was given, floats ``[..., up.in_features]``, to ``[..., out_features]``."""
        up = self._up[0]
        return feed_forward(x, up.weight, up.bias, up.epilogue, self.weight, self.bias, self.activation_mode)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, computes FeedForwardUp of {self.up.in_features} columns too"


def _check_type(name: str, value: object, expected: type) -> None:
    if not isinstance(value, expected):
        raise TypeError(f"{name}: expected a {expected.__name__}, got {type(value).__name__}")
