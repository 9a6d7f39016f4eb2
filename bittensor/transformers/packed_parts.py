"""What transformers loads the tensors of a packed layer into."""

from __future__ import annotations

import torch

from ..checkpoints import ReorderedWeight, native
from ..form_entry import form_entry
from ..nn import QuantizedLinear
from ..prepared_weight import WeightForm
from ..quantization import empty_weight


class PackedParts(torch.nn.Module):
    """The tensors of a packed layer as buffers, for transformers to load into.

    Args:
        form: of the weight.
        bias: of the layer that it stands for, or None.
    """

    def __init__(self, form: WeightForm, bias: torch.nn.Parameter | None) -> None:
        super().__init__()
        self.expected = form
        self.bias: torch.nn.Parameter | None
        for name, tensor in (empty_weight(form).tensors() | {"form": form_entry(form).to("meta")}).items():
            self.register_buffer(name, tensor)
        self.register_parameter("bias", bias)
        # What transformers reads of a Linear when it initializes a model; the mark says that it needs no values.
        self.out_features, self.in_features = form.shape
        self.weight = torch.empty(form.shape, device="meta")
        self.weight._is_hf_initialized = True  # type: ignore[attr-defined]

    def missing(self) -> list[str]:
        """The tensors that transformers has not loaded, which hold anything then: it marks those that it has."""
        tensors = self.state_dict(keep_vars=True)
        return [name for name, tensor in tensors.items() if not getattr(tensor, "_is_hf_initialized", False)]

    def layer(self, activation_mode: str) -> QuantizedLinear:
        """The layer of what was loaded.

        Raises:
            TypeError, ValueError: the tensors are not those of a weight of this form.
        """
        stored = native.NativeFormat().decode(dict(self.named_buffers()))
        assert not isinstance(stored, (ReorderedWeight, torch.Tensor))  # there is no part "order"
        if stored.form != self.expected:
            raise ValueError(f"form: config.json says {self.expected}, but the file {stored.form}")
        return QuantizedLinear(stored, self.bias, activation_mode=activation_mode)
