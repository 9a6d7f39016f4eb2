"""JSON files of checkpoints, read with distrust."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

LARGEST_JSON = 1 << 28
"""Bytes; the index of a model with a million tensors takes less."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: it cannot be read, is not JSON, or is not an object.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_JSON:
            raise CheckpointError(path, f"expected at most {LARGEST_JSON} bytes of JSON, got {size}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(path, error.strerror or str(error)) from None
    except RecursionError:
        raise CheckpointError(path, "the JSON is nested too deeply") from None
    except ValueError as error:  # also what is not UTF-8
        raise CheckpointError(path, f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(path, f"expected a JSON object, got {type(content).__name__}")
    return content


def take(path: Path, config: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """The value of `key`, which must be of `kind`; `default` if it is not there or null.

    Raises:
        CheckpointError: the value is of another type, or missing without a default.
    """
    value = config.get(key)
    if value is None:
        if default is None:
            raise CheckpointError(path, f"expected {key!r}, {_name(kind)}; it is missing")
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise CheckpointError(path, f"{key!r}: expected {_name(kind)}, got {type(value).__name__} {_shown(value)}")
    return value


def _name(kind: type) -> str:
    names = {int: "an integer", str: "a string", bool: "true or false", dict: "an object", list: "a list"}
    return names.get(kind, kind.__name__)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
