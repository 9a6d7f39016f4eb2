"""Models of the package transformers with packed weights and the attention of a backend.

    config = BitTensorConfig(bits=4, group_size=64)
    model = AutoModel.from_pretrained(path, quantization_config=config, attn_implementation="bittensor")

Importing this module registers both, the quantization method and the attention implementation "bittensor". It has
`fuse_feed_forward_` too, from feed_forward_fusion.py. `prepare_saving_` is for models that `bittensor.quantize_` has
packed.

Not imported by ``import bittensor``. It needs the extra: ``pip install 'packed-bittensor[transformers]'``.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from .extras import extra

with extra("transformers", "bittensor.transformers", ("transformers", "safetensors")):
    from safetensors import safe_open
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, revert_weight_conversion
    from transformers.masking_utils import bidirectional_mask_function
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module
    from transformers.utils.quantization_config import QuantizationConfigMixin

from .checkpoints import ReorderedWeight, native
from .checks import check_int, dtype_name
from .feed_forward_fusion import fuse_feed_forward_ as fuse_feed_forward_
from .form_entry import form_entry
from .model_quantization import quantize_
from .nn import (
    FakeQuantizedLinear,
    FeedForwardDown,
    LinearWeightModule,
    LoRALinear,
    PackedLinear,
    QuantizedConv2d,
    QuantizedEmbedding,
    QuantizedLinear,
    ScaledInputLinear,
)
from .prepared_weight import SCALE_DTYPES, WeightForm
from .quantization import empty_weight
from .quantize_config import QuantizeConfig
from .registry import current_backend
from .weight_checks import check_choice

_SCALE_DTYPES = {dtype_name(dtype): dtype for dtype in SCALE_DTYPES}
_WEIGHT, _WORDS = ".weight", ".words"
_ATTENTION = "bittensor"
"""The name of `attend` as an attention implementation of transformers."""

_OTHER_ATTENTION = (
    *("position_bias", "s_aux", "sliding_window", "softcap", "output_attentions"),
    *("cu_seq_lens_q", "cu_seq_lens_k"),  # sequences without padding, one behind the other
)
"""Arguments for attention that ask for something else than `attend` computes."""

_FLOAT_LAYER = "keep its float layer, or save the state_dict with torch.save"
_NOT_LOADED: dict[type[torch.nn.Module], str] = {
    LoRALinear: "save its update alone (bittensor.lora_state_dict), or merge it first (bittensor.merge_lora_)",
    FakeQuantizedLinear: "pack it first (bittensor.convert_qat_)",
    **dict.fromkeys((ScaledInputLinear, QuantizedConv2d, QuantizedEmbedding, PackedLinear), _FLOAT_LAYER),
}
"""Layers that `from_pretrained` could not load, and what to do instead of saving them."""

_BATCH = 32
"""Sequences of one batch of `random_tokens`."""


def random_tokens(
    model: PreTrainedModel, sequences: int = 128, length: int = 32, *, seed: int = 0
) -> list[dict[str, torch.Tensor]]:
    """Token ids drawn alike from the whole vocabulary of a model, for `bittensor.quantize_` and `bittensor.calibrate`
    without any data.

    What layers are given for such tokens is not what text gives them, but nearer to it than the assumption of
    `bittensor.quantize`, that all columns of a weight count alike. A damping of 0.1 keeps layers from being fitted to
    these tokens too closely. docs/embedding_model.md has figures.

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
    >>> len(bittensor.quantize_(model, config, batches=random_tokens(model), damping=0.1).quantized)
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
        if weights is None:
            raise ValueError("config.json: quantization_config has no weights; was it written by save_pretrained?")
        stored = _tensor_names(checkpoint_files)
        packed = [name.removesuffix(_WORDS) for name in sorted(stored) if name.endswith(_WORDS)]
        if (count := sum(f"{name}.form" in stored for name in packed)) > len(weights):
            raise ValueError(
                f"config.json: quantization_config describes {len(weights)} packed weights, but "
                f"{', '.join(map(str, checkpoint_files or ()))} has {count}"
            )
        if ordered := [name for name in packed if f"{name}.order" in stored]:
            raise ValueError(
                f"{ordered[0]}.order: weights with ordered columns (act-order) do not fit into a model of "
                "transformers; bittensor.models runs them"
            )
        described = {name: f"{name.removesuffix(_WEIGHT)}{_WORDS}" for name in weights}
        renamed = _names_in_model(model, stored.union(described.values()))
        for name, entry in weights.items():
            layer = _layer_of(model, name, renamed[described[name]].removesuffix(_WORDS))
            linear = model.get_submodule(layer)
            try:
                form = native.form_of_config(entry)
            except (TypeError, ValueError) as error:
                raise ValueError(f"config.json: {name}: {error}") from None
            if not isinstance(linear, torch.nn.Linear) or tuple(linear.weight.shape) != form.shape:
                raise ValueError(f"{name}: expected a Linear of shape {list(form.shape)} in the model, got {linear}")
            model.set_submodule(layer, PackedParts(form, linear.bias))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        config = self.quantization_config
        if self.pre_quantized:
            for name, module in list(model.named_modules()):
                if isinstance(module, PackedParts):
                    if missing := module.missing():
                        raise ValueError(f"{name}{_WEIGHT}: {missing[0]}: missing in {model.name_or_path}")
                    try:
                        model.set_submodule(name, module.layer(config.activation_mode))
                    except (TypeError, ValueError) as error:
                        raise ValueError(f"{name}{_WEIGHT}: {error}") from None
        else:
            kept_whole = list(model._keep_in_fp32_modules or ())
            skip = self.get_modules_to_not_convert(model, config.modules_to_not_convert, kept_whole)
            converted = {name for name, _ in model.named_modules() if should_convert_module(name, skip)}
            if _check_matrices(model, converted):
                quantize_(model, config.layers, lambda name, _: name in converted)
        config.weights = _forms(model)
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel, *_: Any, **__: Any) -> tuple[None, dict[str, Any]]:
        """Bring the configuration up to date with the layers that are saved: some may have been packed or merged since.

        Raises:
            ValueError: the model has a layer that could not be loaded, or layers with different activation modes.
        """
        config = self.quantization_config
        modes: dict[str, str] = {}
        for name, module in model.named_modules():
            for kind, advice in _NOT_LOADED.items():
                if isinstance(module, kind):
                    raise ValueError(f"{name}: from_pretrained could not load a {kind.__name__}: {advice}")
            if isinstance(module, LinearWeightModule):
                modes.setdefault(module.activation_mode, name)
        if len(modes) > 1:
            (mode, name), (other_mode, other), *_more = modes.items()
            raise ValueError(
                f"{other}: activation_mode: expected {mode!r}, as {name} has it, got {other_mode!r}: the configuration "
                "has one for all layers"
            )
        config.activation_mode = next(iter(modes), config.activation_mode)
        forms = _forms(model)
        in_file = _names_in_file(model, forms)
        config.weights = {in_file[name]: form for name, form in forms.items()}
        model.config.quantization_config = config
        return None, {}

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        layers = [(name, module) for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
        if fused := [name for name, module in model.named_modules() if isinstance(module, FeedForwardDown)]:
            raise ValueError(f"{fused[0]}: expected a layer of its own, to become a Linear, got one of two in one step")
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


def prepare_saving_(model: PreTrainedModel) -> BitTensorConfig:
    """Let `save_pretrained` save a model that was packed by `bittensor.quantize_` or `bittensor.calibrate`.

    A model that `from_pretrained` quantized needs no such step. Without it, `save_pretrained` writes the packed weights
    but nothing that says so, and `from_pretrained` would fill their layers with random numbers.

    Layers that are packed, merged or changed later are saved as they are then.

    Args:
        model: changed in place: its `hf_quantizer`, and ``config.quantization_config``.

    Returns:
        The configuration, with the form of the first packed layer: each weight is saved with its own. What `quantize_`
        was told about the choice of codes is not known any more, so that `method` is "rtn".

    Raises:
        TypeError: not a model of transformers.
        ValueError: it has no packed layer, or was quantized by another method of transformers.

    >>> import bittensor
    >>> from transformers import BertConfig, BertModel
    >>> sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    >>> model = BertModel(BertConfig(vocab_size=20, **sizes))
    >>> report = bittensor.quantize_(model, bittensor.QuantizeConfig(bits=4, group_size=32))
    >>> len(prepare_saving_(model).weights)
    7
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model: expected a PreTrainedModel of transformers, got {type(model).__name__}")
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not isinstance(quantizer, BitTensorQuantizer):
        raise ValueError(f"model: expected one without another quantization, got {type(quantizer).__name__}")
    layers = [module for module in model.modules() if isinstance(module, LinearWeightModule)]
    if not layers:
        raise ValueError(
            f"model: expected packed layers, got a {type(model).__name__} without any: use quantize_ first"
        )
    if quantizer is None:
        form = layers[0].weight.form
        config = BitTensorConfig(
            form.bits,
            form.group_size,
            form.zero,
            scale_dtype=form.scale_dtype,
            activation_mode=layers[0].activation_mode,
        )
        quantizer = BitTensorQuantizer(config, pre_quantized=True)
        attributes = {"hf_quantizer": quantizer, "is_quantized": True, "quantization_method": config.quant_method}
        for name, value in attributes.items():  # as from_pretrained sets them
            setattr(model, name, value)
    quantizer.postprocess_model(model)
    return quantizer.quantization_config


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


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention implementation "bittensor", for encoders: `FusedOperations.attend_bidirectional` of the backend.

    Chosen by ``attn_implementation="bittensor"`` or `model.set_attn_implementation("bittensor")`. Padding is left out
    and not only hidden: it costs nothing, and what a sentence gets does not depend on the batch that it is in.

    Args:
        module: of which `is_causal` counts unless it is given.
        query: float ``[B, heads, T, size]``; other dtypes than float32 are computed in it.
        key, value: ``[B, key_value_heads, S, size]``.
        attention_mask: bool ``[B, S]``, False at padding, or None.
        scaling: of the scores; None: ``size ** -0.5``.
        dropout: 0.
        is_causal: False.
        others: what else transformers passes; None of `_OTHER_ATTENTION`.

    Returns:
        ``[B, T, heads, size]`` of the dtype of the query, and None in place of the attention's weights.

    Raises:
        ValueError: causal attention, dropout, another mask than one of padding, or something else that the
            model asks of its attention and this does not have.
        RuntimeError: a gradient is to be recorded.
    """
    advice = f"attn_implementation {_ATTENTION!r} is for encoders; use 'sdpa' or 'eager' for this model"
    if is_causal if is_causal is not None else getattr(module, "is_causal", False):
        raise ValueError(f"is_causal: expected False, got True: {advice}")
    if dropout != 0.0:
        raise ValueError(f"dropout: expected 0, got {dropout}: call model.eval(), or use 'sdpa' to train")
    for name in _OTHER_ATTENTION:
        asked = others.get(name)
        if asked is not None and asked is not False:
            got = f"a tensor {list(asked.shape)}" if isinstance(asked, torch.Tensor) else asked
            raise ValueError(f"{name}: expected none, got {got}: {advice}")
    if attention_mask is not None and (attention_mask.dim() != 2 or attention_mask.dtype != torch.bool):
        got = f"{dtype_name(attention_mask.dtype)} {list(attention_mask.shape)}"
        raise ValueError(f"attention_mask: expected one of padding, [B, S], got {got}: {advice}")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)):
        raise RuntimeError(
            f"attn_implementation {_ATTENTION!r} has no gradient: call the model under torch.inference_mode(), or use "
            "'sdpa' to train"
        )
    batch, heads, tokens, size = query.shape
    mixed = (
        current_backend()
        .fused()
        .attend_bidirectional(
            query.float(), key.float(), value.float(), attention_mask, size**-0.5 if scaling is None else scaling
        )
    )
    return mixed.view(batch, tokens, heads, size).to(query.dtype), None


def padding_mask(
    *, kv_length: int, mask_function: Any, attention_mask: torch.Tensor | None = None, **_: Any
) -> torch.Tensor | None:
    """The mask that `attend` takes, of what transformers makes masks of.

    Args:
        kv_length: S.
        mask_function: which keys a query may see beside padding: all.
        attention_mask: bool ``[B, S]`` or None.

    Raises:
        ValueError: another mask function.
    """
    if mask_function is not bidirectional_mask_function:
        raise ValueError(
            f"attn_implementation {_ATTENTION!r}: expected a model in which every token sees every other, an encoder; "
            "use 'sdpa' or 'eager' for this one"
        )
    if attention_mask is not None and attention_mask.shape[-1] != kv_length:
        raise ValueError(f"attention_mask: expected {kv_length} tokens, got {attention_mask.shape[-1]}")
    return attention_mask


AttentionInterface.register(_ATTENTION, attend)
AttentionMaskInterface.register(_ATTENTION, padding_mask)


def _check_matrices(model: PreTrainedModel, converted: Collection[str]) -> bool:
    """Whether any of these modules is a layer that is quantized, with a warning if most of what they hold stays floats.

    Counted are parameters with two dimensions or more, but embeddings.

    Warns:
        UserWarning: there is none, or other layers have more than half of the parameters.
    """
    modules = list(model.named_modules())
    left_out = {  # and then those seen
        id(parameter)
        for name, module in modules
        if isinstance(module, torch.nn.Embedding) or name not in converted
        for parameter in module.parameters(recurse=False)
    }
    linear, other, others = 0, 0, Counter[str]()
    for _, module in modules:
        for parameter in module.parameters(recurse=False):
            if parameter.dim() > 1 and id(parameter) not in left_out:
                left_out.add(id(parameter))
                if isinstance(module, torch.nn.Linear):
                    linear += parameter.numel()
                else:
                    other += parameter.numel()
                    others[type(module).__name__] += parameter.numel()
    kinds = f" (instead: {', '.join(kind for kind, _ in others.most_common(3))})" if others else ""
    layers = [name for name, module in modules if isinstance(module, torch.nn.Linear) and name in converted]
    if not layers:
        warnings.warn(
            f"{type(model).__name__}: nothing is quantized: it has no torch.nn.Linear that is not kept whole{kinds}",
            stacklevel=3,
        )
    elif other > linear:
        warnings.warn(
            f"{type(model).__name__}: {other / (linear + other):.0%} of the parameters of its matrices stay floats: "
            f"they are in no torch.nn.Linear{kinds}",
            stacklevel=3,
        )
    return bool(layers)


def _layer_of(model: PreTrainedModel, weight: str, renamed: str) -> str:
    """The module that a weight of a file belongs to: transformers adds or drops the prefix of the base model.

    Args:
        weight: its name in the file.
        renamed: the name of its layer by `_names_in_model`.
    """
    layer, prefix = weight.removesuffix(_WEIGHT), f"{model.base_model_prefix}."
    for stem in (renamed, layer):
        for name in (stem, f"{prefix}{stem}", stem.removeprefix(prefix)):
            with suppress(AttributeError):
                model.get_submodule(name)
                return name
    raise ValueError(f"{weight}: the model {type(model).__name__} has no module {layer}")


def _names_in_model(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """What transformers makes of the names of a file when it loads it: for some models they are not those of modules.

    The prefix of the base model is as it was.
    """
    renamings = [change for change in get_model_conversion_mapping(model) if isinstance(change, WeightRenaming)]
    result = {}
    for name in sorted(names):  # as transformers does: a renaming may wait for another one
        result[name] = name
        for renaming in renamings:
            result[name], _ = renaming.rename_source_key(result[name])
    return result


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
        if isinstance(module, LinearWeightModule)
    }


def _names_in_file(model: PreTrainedModel, weights: Iterable[str]) -> dict[str, str]:
    """What `save_pretrained` makes of the names of packed weights: the inverse of `_names_in_model`."""
    names = list(weights)
    places = {f"{name.removesuffix(_WEIGHT)}{_WORDS}": torch.tensor([place]) for place, name in enumerate(names)}
    saved = revert_weight_conversion(model, places)
    return {names[int(place)]: f"{name.removesuffix(_WORDS)}{_WEIGHT}" for name, place in saved.items()}
