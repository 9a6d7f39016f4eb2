"""Names of packed weights: transformers has some in a model, and others in the file that it is saved to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, revert_weight_conversion
from transformers.quantizers.base import HfQuantizer

from ..checkpoints import native

WEIGHT, WORDS = ".weight", ".words"
"""Ends of names: of a weight in the configuration, and of the first of its tensors."""


def layer_of(model: PreTrainedModel, weight: str, renamed: str) -> str | None:
    """The module that a weight of a file belongs to: transformers adds or drops the prefix of the base model.

    Args:
        weight: its name in the file.
        renamed: the name of its layer by `names_in_model`.

    Returns:
        None for a layer of a head that the model does not have: it may be the base of the one that was saved.

    Raises:
        ValueError: the model has no such module, in a part that it does have.
    """
    layer, prefix = weight.removesuffix(WEIGHT), f"{model.base_model_prefix}."
    for stem in (renamed, layer):
        for name in (stem, f"{prefix}{stem}", stem.removeprefix(prefix)):
            with suppress(AttributeError):
                model.get_submodule(name)
                return name
    head = renamed.removeprefix(prefix).split(".")[0]
    if any(hasattr(part, head) for part in (model, model.base_model)):
        raise ValueError(f"{weight}: the model {type(model).__name__} has no module {layer}")
    return None


def names_in_model(model: PreTrainedModel, names: Iterable[str], quantizer: HfQuantizer) -> dict[str, str]:
    """What transformers makes of the names of a file when it loads it: for some models they are not those of modules.

    The prefix of the base model is as it was.
    """
    changes = get_model_conversion_mapping(model, hf_quantizer=quantizer)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    result = {}
    for name in sorted(names):  # as transformers does: a renaming may wait for another one
        result[name] = name
        for renaming in renamings:
            result[name], _ = renaming.rename_source_key(result[name])
    return result


def stored_names(files: Sequence[str] | None) -> set[str]:
    """Names of all tensors in safetensors files.

    Raises:
        ValueError: the files are not known, or of another kind.
    """
    if files is None or not all(str(file).endswith(".safetensors") for file in files):
        raise ValueError(f"expected packed weights in safetensors files, got {files}")
    names: set[str] = set()
    for file in files:
        with safe_open(file, framework="pt") as opened:
            names.update(opened.keys())
    return names


def names_in_file(model: PreTrainedModel, weights: Iterable[str]) -> dict[str, str]:
    """What `save_pretrained` makes of the names of packed weights: the inverse of `names_in_model`."""
    names = list(weights)
    places = {
        f"{name.removesuffix(WEIGHT)}{WORDS}": torch.tensor([place], device="cpu") for place, name in enumerate(names)
    }
    saved = revert_weight_conversion(model, places)
    return {names[int(place)]: f"{name.removesuffix(WORDS)}{WEIGHT}" for name, place in saved.items()}


def expert_renamings(conversions: Iterable[Any]) -> list[WeightRenaming]:
    """The names of packed weights of experts, where those of the file are not those of `bittensor.nn.ExpertLayers`.

    Args:
        conversions: what transformers makes of a file, of which some stack the float weights of the experts.
    """
    renamings = []
    for stacking in conversions:
        if not isinstance(stacking, WeightConverter):
            continue
        sources, targets = stacking._original_source_patterns, stacking._original_target_patterns
        matches = [re.fullmatch(r"(.*experts\\?\.)\*\.(\w+)\.weight", source) for source in sources]
        layers = _STACKED.get((targets[0].rpartition(".")[2], len(sources)))
        if layers is None or not all(matches):
            continue
        for match, layer in zip(matches, layers, strict=True):
            assert match is not None
            head, name = match.groups()
            for part in native.NativeFormat.parts if name != layer else ():
                source, target = (rf"{head}{place}.{each}.{part}" for place, each in ((r"(\d+)", name), (r"\1", layer)))
                renaming = WeightRenaming(source, target)
                renaming.scope_prefix, renaming.base_model_prefix = stacking.scope_prefix, stacking.base_model_prefix
                renamings.append(renaming)
    return renamings


_STACKED = {
    ("gate_up_proj", 2): ("gate_proj", "up_proj"),
    ("up_proj", 1): ("up_proj",),
    ("down_proj", 1): ("down_proj",),
}
"""The layers of an expert that become part of a stack, by the name of it and how many they are."""
