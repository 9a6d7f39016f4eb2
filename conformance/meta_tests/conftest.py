"""Makes the broken backends available as a stranger's would be: by entry points of a distribution on the path."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from broken_backends import FAULTS
from broken_conditions import CONDITION_FAULTS
from broken_gradients import GRADIENT_FAULTS
from broken_linears import LINEAR_FAULTS
from broken_operations import OPERATION_FAULTS
from broken_promises import PROMISE_FAULTS


@pytest.fixture(scope="session", autouse=True)
def frozen_heap() -> Iterator[None]:
    """pytest collects garbage several times when a session ends. The hundreds inside this one spend a second each on
    what other tests have left in memory, unless that is frozen."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def installed_faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("site")
    distribution = folder / "broken_backends-1.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-backends\nVersion: 1\n")
    faults = FAULTS | LINEAR_FAULTS | GRADIENT_FAULTS | PROMISE_FAULTS | CONDITION_FAULTS | OPERATION_FAULTS
    points = "".join(f"{name} = {fault.__module__}:{name}\n" for name, fault in faults.items())
    (distribution / "entry_points.txt").write_text(f"[bittensor.backends]\n{points}")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        # Child processes find the distribution and the module as this one does.
        inherited = os.environ.get("PYTHONPATH", "")
        paths = [str(folder), str(Path(__file__).parent), *filter(None, [inherited])]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        yield
