"""Models of the package transformers with packed weights and the attention of a backend.

    config = BitTensorConfig(bits=4, group_size=64)
    model = AutoModel.from_pretrained(path, quantization_config=config, attn_implementation="bittensor")

Importing this package registers both, the quantization method and the attention implementation "bittensor". It has
`fuse_feed_forward_` too, from bittensor/feed_forward_fusion.py. `prepare_saving_` is for models that
`bittensor.quantize_` has packed.

Not imported by ``import bittensor``. It needs the extra: ``pip install 'packed-bittensor[transformers]'``.
"""

from ..extras import extra
from ..feed_forward_fusion import fuse_feed_forward_

with extra("transformers", "bittensor.transformers", ("transformers", "safetensors")):
    import safetensors  # noqa: F401 (first: if it is missing, the error of transformers does not say so)

    from .attention import attend, padding_mask
    from .calibration_tokens import random_tokens
    from .packed_parts import PackedParts
    from .quantization_config import BitTensorConfig
    from .quantizer import BitTensorQuantizer
    from .saving import prepare_saving_

__all__ = [
    "BitTensorConfig",
    "BitTensorQuantizer",
    "PackedParts",
    "attend",
    "fuse_feed_forward_",
    "padding_mask",
    "prepare_saving_",
    "random_tokens",
]
