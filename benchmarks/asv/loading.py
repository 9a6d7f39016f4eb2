"""What a process pays before it computes: importing the package, opening a checkpoint; and the size of the package."""

from __future__ import annotations

import tempfile
from importlib import metadata, util
from pathlib import Path

from asv_runner.benchmarks.mark import SkipNotImplemented

import bittensor

from .weights import random_weight

LAYERS, FEATURES = 8, 1024


class Import:
    """Each sample is a process of its own."""

    number = 1
    repeat = 5
    rounds = 2

    def timeraw_torch(self) -> str:
        return "import torch"

    def timeraw_backend(self) -> str:
        return "import bittensor; bittensor.get_backend('cpp')"


class Checkpoint:
    """A checkpoint of our own format: opened, and read into modules."""

    rounds = 2
    repeat = (3, 6, 0.5)

    def setup(self) -> None:
        if util.find_spec("bittensor.checkpoints") is None or util.find_spec("safetensors") is None:
            raise SkipNotImplemented("this commit cannot read checkpoints, or safetensors is not installed")
        from bittensor.checkpoints import save_checkpoint

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "checkpoint"
        weight = random_weight(FEATURES, FEATURES, 128)
        save_checkpoint(self.path, {f"layers.{index}.weight": weight for index in range(LAYERS)})

    def teardown(self) -> None:
        self.folder.cleanup()

    def time_read(self) -> None:
        from bittensor.checkpoints import open_checkpoint

        for _ in open_checkpoint(self.path).tensors():
            pass

    def time_prepare(self) -> None:
        """Read, and brought into the layout of the backend."""
        from bittensor.checkpoints import open_checkpoint

        backend = bittensor.get_backend("cpp")
        for _, weight in open_checkpoint(self.path).tensors():
            backend.prepare(weight)


class PackageSize:
    """Bytes of what is installed."""

    unit = "bytes"
    params = (["all", "libbittensor.so", "libbittensor_torch.so"],)
    param_names = ("file",)

    def track_installed_bytes(self, file: str) -> int:
        installed = [Path(str(path.locate())) for path in metadata.files("packed-bittensor") or ()]
        return sum(path.stat().st_size for path in installed if path.is_file() and file in ("all", path.name))
