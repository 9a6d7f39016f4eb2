"""BitTensor: packed low-bit tensors for PyTorch on CPUs, and the harness that proves its kernels right and fast."""

from . import nn
from ._distribution import __version__, warn_of_name_clash
from .backend import PROTOCOL_VERSION, Backend, Capabilities
from .calibration import calibrate
from .errors import BackendError, BackendLoadError, CheckpointError, UnknownBackendError, UnsupportedOperationError
from .model_quantization import LayerReport, QuantizeReport, quantize_
from .nn import PackedLinear, QuantizedLinear
from .ops import linear, pack_weights, packed_matmul, unpack_tensor, unpack_weights
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
    "available_backends",
    "calibrate",
    "current_backend",
    "get_backend",
    "linear",
    "nn",
    "pack_weights",
    "packed_matmul",
    "quantize",
    "quantize_",
    "set_backend",
    "unpack_tensor",
    "unpack_weights",
    "use_backend",
]

warn_of_name_clash()
