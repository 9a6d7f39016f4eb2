"""Saving of models of transformers that were packed after they were loaded."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..nn import LinearWeightModule
from .quantization_config import BitTensorConfig
from .quantizer import BitTensorQuantizer


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
