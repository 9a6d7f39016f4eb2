"""BitTensor: packed low-bit tensors for PyTorch on CPUs, and the harness that proves its kernels right and fast."""

from . import nn
from ._distribution import __version__, warn_of_name_clash
from .activation_fusion import fuse_activations_
from .backend import PROTOCOL_VERSION, Backend, Capabilities
from .calibration import calibrate
from .errors import BackendError, BackendLoadError, CheckpointError, UnknownBackendError, UnsupportedOperationError
from .lora import MergedLayer, add_lora_, load_lora_state_dict_, lora_state_dict, merge_lora_
from .model_quantization import LayerReport, QuantizeReport, convert_qat_, prepare_qat_, quantize_
from .nn import PackedLinear, QuantizedLinear
from .ops import embedding, linear, pack_weights, packed_matmul, unpack_tensor, unpack_weights
from .prepared_weight import PreparedWeight, WeightForm
from .quantization import quantize
from .quantize_config import QuantizeConfig
from .quantized_weight import QuantizedWeight
from .registry import available_backends, current_backend, get_backend, set_backend, use_backend

__all__ = [
    "PROTOCOL_VERSION",
    "Backend",
    "BackendError",
    "BackendLoadError",
    "Capabilities",
    "CheckpointError",
    "LayerReport",
    "MergedLayer",
    "PackedLinear",
    "PreparedWeight",
    "QuantizeConfig",
    "QuantizeReport",
    "QuantizedLinear",
    "QuantizedWeight",
    "UnknownBackendError",
    "UnsupportedOperationError",
    "WeightForm",
    "__version__",
    "add_lora_",
    "available_backends",
    "calibrate",
    "convert_qat_",
    "current_backend",
    "embedding",
    "fuse_activations_",
    "get_backend",
    "linear",
    "load_lora_state_dict_",
    "lora_state_dict",
    "merge_lora_",
    "nn",
    "pack_weights",
    "packed_matmul",
    "prepare_qat_",
    "quantize",
    "quantize_",
    "set_backend",
    "unpack_tensor",
    "unpack_weights",
    "use_backend",
]

warn_of_name_clash()
