"""Options that several commands have."""

from __future__ import annotations

import os
from enum import Enum

from ..registry import DEFAULT_BACKEND, ENVIRONMENT_VARIABLE

WITHOUT_A_BACKEND = f"Without it: {ENVIRONMENT_VARIABLE}, else {DEFAULT_BACKEND}."


def selected_backend() -> str:
    """The name of the backend where a command is given none."""
    return os.environ.get(ENVIRONMENT_VARIABLE, DEFAULT_BACKEND)


class Method(str, Enum):
    """How codes are chosen, as `bittensor.quantize` says."""

    RTN = "rtn"
    MSE = "mse"
    HQQ = "hqq"


class Zero(str, Enum):
    """What a group holds beside its scale, as `bittensor.quantize` says."""

    SYMMETRIC = "symmetric"
    INTEGER = "integer"
    FLOAT = "float"


class ScaleType(str, Enum):
    """Dtype of scales and offsets."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class ActivationMode(str, Enum):
    """Modes of `bittensor.linear`."""

    INT8 = "int8"
    FLOAT = "float"
