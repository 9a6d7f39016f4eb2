"""Models of the package transformers with packed weights. Importing this module registers the method "bittensor".

    model = AutoModel.from_pretrained(path, quantization_config=BitTensorConfig(bits=4, group_size=64))

Not imported by ``import bittensor``. It needs the extra: ``pip install 'packed-bittensor[transformers]'``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from .extras import extra

with extra("transformers", "bittensor.transformers", ("transformers", "safetensors")):
    from safetensors import safe_open
    from transformers import PreTrainedModel
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module
    from transformers.utils.quantization_config import QuantizationConfigMixin

from .checkpoints import ReorderedWeight, native
from .checks import check_int, dtype_name
from .form_entry import form_entry
from .model_quantization import quantize_
from .nn import QuantizedEmbedding, QuantizedLinear
from .prepared_weight import SCALE_DTYPES, WeightForm
from .quantization import empty_weight
from .quantize_config import QuantizeConfig
from .weight_checks import check_choice

_SCALE_DTYPES = {dtype_name(dtype): dtype for dtype in SCALE_DTYPES}
_WEIGHT = ".weight"
_BATCH = 32
"""Sequences of one batch of `random_tokens`."""


def random_tokens(
    model: PreTrainedModel, sequences: int = 128, length: int = 32, *, seed: int = 0
) -> list[dict[str, torch.Tensor]]:
    """Token ids drawn alike from the whole vocabulary of a model, for `bittensor.quantize_` and `bittensor.calibrate`
    without any data.

    What layers are given for such tokens is not what text gives them, but nearer to it than the assumption of
    `bittensor.quantize`, that all columns of a weight count alike. docs/embedding_model.md has figures.

    Args:
        model: one that is called with token ids alone: an encoder, or a decoder.
        sequences, length: how many, and of how many tokens each.
        seed: the same seed gives the same tokens.

    Returns:
        Batches of up to 32 sequences: ``{"input_ids": int64 [B, length]}``.

    Raises:
        TypeError: a number that is not an int.
        ValueError: a model that is not called with token ids alone, or a number below 1.

    >>> import bittensor
    >>> from transformers import BertConfig, BertModel
    >>> sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    >>> model = BertModel(BertConfig(vocab_size=20, **sizes))
    >>> config = bittensor.QuantizeConfig(bits=4, group_size=32, zero="float", method="hqq")
    >>> len(bittensor.quantize_(model, config, batches=random_tokens(model)).quantized)
    7
    """
    for name, value in (("sequences", sequences), ("length", length)):
        if check_int(name, value) < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    table = model.get_input_embeddings()
    if not isinstance(table, (torch.nn.Embedding, QuantizedEmbedding)) or model.config.is_encoder_decoder:
        raise ValueError(f"model: expected one that is called with token ids alone, got {type(model).__name__}")
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(table.num_embeddings, (sequences, length), generator=generator)
    return [{"input_ids": tokens[start : start + _BATCH]} for start in range(0, sequences, _BATCH)]


@register_quantization_config(native.METHOD)
class BitTensorConfig(QuantizationConfigMixin):
    """How `from_pretrained` quantizes the linear layers of a model, or how those of a saved one are quantized.

    Args:
        bits, group_size, zero, method, activation_mode: as in `bittensor.QuantizeConfig`.
        scale_dtype: as there, or its name: "float16", "bfloat16", "float32".
        modules_to_not_convert: names of modules, or ends of names, or regular expressions, as everywhere in
            transformers; None leaves out the output embeddings and modules with tied weights.
        version, weights: written by `save_pretrained`: the version of the format, and the form of each packed weight,
            by name (docs/checkpoints.md).

    Raises:
        TypeError, ValueError: a value that no layer could be quantized with, or another version.

    >>> BitTensorConfig(bits=4, group_size=64, method="hqq").layers
    QuantizeConfig(bits=4, group_size=64, zero='symmetric', method='hqq', scale_dtype=None, activation_mode='int8')
    """

    def __init__(
        self,
        bits: int = 4,
        group_size: int | None = 128,
        zero: str = "symmetric",
        method: str = "rtn",
        scale_dtype: torch.dtype | str | None = None,
        activation_mode: str = "int8",
        modules_to_not_convert: Sequence[str] | None = None,
        version: int = native.VERSION,
        weights: Mapping[str, Any] | None = None,
        quant_method: str = native.METHOD,
    ) -> None:
        if quant_method != native.METHOD:
            raise ValueError(f"quant_method: expected {native.METHOD!r}, got {quant_method!r}")
        if version != native.VERSION:
            raise ValueError(f"version: expected version {native.VERSION} of the format, got {version!r}")
        if isinstance(modules_to_not_convert, str):
            raise TypeError(f"modules_to_not_convert: expected a list of names, got {modules_to_not_convert!r}")
        self.quant_method = quant_method  # type: ignore[assignment]  # theirs is an enumeration of their own methods
        self.bits, self.group_size, self.zero, self.method = bits, group_size, zero, method
        self.scale_dtype = dtype_name(scale_dtype) if isinstance(scale_dtype, torch.dtype) else scale_dtype
        self.activation_mode = activation_mode
        self.modules_to_not_convert = None if modules_to_not_convert is None else list(modules_to_not_convert)
        self.version = version
        self.weights = None if weights is None else dict(weights)
        _ = self.layers

    @property
    def layers(self) -> QuantizeConfig:
        """The same for `bittensor.quantize_`."""
        if self.scale_dtype is not None:
            check_choice("scale_dtype", self.scale_dtype, tuple(_SCALE_DTYPES))
        return QuantizeConfig(
            self.bits,
            self.group_size,
            self.zero,
            self.method,
            None if self.scale_dtype is None else _SCALE_DTYPES[self.scale_dtype],
            self.activation_mode,
        )


@register_quantizer(native.METHOD)
class BitTensorQuantizer(HfQuantizer):
    """What `from_pretrained` does for a `BitTensorConfig`.

    A float model is quantized when it is loaded. Of a packed one, every packed layer waits as a `PackedParts`, which
    transformers fills as any module, and becomes a `bittensor.QuantizedLinear` then.
    """

    quantization_config: BitTensorConfig

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """Refuse places that are not the CPU.

        Raises:
            ValueError: `device_map` names one.
        """
        places = list(device_map.values()) if isinstance(device_map, dict) else [device_map]
        if wrong := [place for place in places if place is not None and str(place) not in ("cpu", "auto")]:
            raise ValueError(f"device_map: expected the CPU for method {native.METHOD!r}, got {wrong[0]!r}")

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> None:
        if not self.pre_quantized:
            return
        weights = self.quantization_config.weights
        if not weights:
            raise ValueError("config.json: quantization_config has no weights; was it written by save_pretrained?")
        stored = _tensor_names(checkpoint_files)
        for name, entry in weights.items():
            layer, stem = _layer_of(model, name), name.removesuffix(_WEIGHT)
            if f"{stem}.order" in stored:
                raise ValueError(
                    f"{stem}.order: weights with ordered columns (act-order) do not fit into a model of transformers; "
                    "bittensor.models runs them"
                )
            linear = model.get_submodule(layer)
            try:
                form = native.form_of_config(entry)
            except (TypeError, ValueError) as error:
                raise ValueError(f"config.json: {name}: {error}") from None
            if not isinstance(linear, torch.nn.Linear) or tuple(linear.weight.shape) != form.shape:
                raise ValueError(f"{name}: expected a Linear of shape {list(form.shape)} in the model, got {linear}")
            parts = PackedParts(form, linear.bias)
            if absent := [part for part in parts.state_dict() if part != "bias" and f"{stem}.{part}" not in stored]:
                raise ValueError(f"{name}: {absent[0]}: missing in {', '.join(map(str, checkpoint_files or ()))}")
            model.set_submodule(layer, parts)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        config = self.quantization_config
        if self.pre_quantized:
            for name, module in list(model.named_modules()):
                if isinstance(module, PackedParts):
                    try:
                        model.set_submodule(name, module.layer(config.activation_mode))
                    except (TypeError, ValueError) as error:
                        raise ValueError(f"{name}{_WEIGHT}: {error}") from None
        else:
            kept_whole = list(model._keep_in_fp32_modules or ())
            skip = self.get_modules_to_not_convert(model, config.modules_to_not_convert, kept_whole)
            quantize_(model, config.layers, lambda name, _: should_convert_module(name, skip))
        config.weights = _forms(model)
        return model

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        layers = [(name, module) for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
        for name, layer in layers:
            if layer.epilogue is not None:  # after fuse_activations_
                raise ValueError(
                    f"{name}: expected a layer without epilogue, to become a Linear, got {layer.epilogue!r}"
                )
        for name, layer in layers:
            linear = torch.nn.Linear(1, 1, bias=layer.bias is not None)
            linear.in_features, linear.out_features = layer.in_features, layer.out_features
            linear.weight = torch.nn.Parameter(layer.weight.dequantize().to(dtype))
            if layer.bias is not None:
                linear.bias = torch.nn.Parameter(layer.bias.detach().to(dtype))
            model.set_submodule(name, linear)
        return model

    def is_serializable(self) -> bool:
        """True: `save_pretrained` writes the packed weights."""
        return True

    @property
    def is_trainable(self) -> bool:
        """False: packed weights are constants."""
        return False

    @property
    def is_compileable(self) -> bool:
        """True: see docs/pytorch.md."""
        return True


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


def _layer_of(model: PreTrainedModel, weight: str) -> str:
    """The module that a weight of a file belongs to: transformers adds or drops the prefix of the base model."""
    layer, prefix = weight.removesuffix(_WEIGHT), f"{model.base_model_prefix}."
    for name in (layer, f"{prefix}{layer}", layer.removeprefix(prefix)):
        with suppress(AttributeError):
            model.get_submodule(name)
            return name
    raise ValueError(f"{weight}: the model {type(model).__name__} has no module {layer}")


def _tensor_names(files: Sequence[str] | None) -> set[str]:
    if files is None or not all(str(file).endswith(".safetensors") for file in files):
        raise ValueError(f"expected packed weights in safetensors files, got {files}")
    names: set[str] = set()
    for file in files:
        with safe_open(file, framework="pt") as opened:
            names.update(opened.keys())
    return names


def _forms(model: torch.nn.Module) -> dict[str, Any]:
    """What the configuration says of each packed weight."""
    return {
        f"{name}{_WEIGHT}": native.form_config(module.weight.form)
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear)
    }
