"""The installed distribution: its version, and the other project that imports under the same name."""

from importlib.metadata import PackageNotFoundError, version
from warnings import warn

DISTRIBUTION = "packed-bittensor"
CLASHING_DISTRIBUTION = "bittensor"

__version__ = version(DISTRIBUTION)


def warn_of_name_clash() -> None:
    """Warn if the unrelated blockchain SDK `bittensor` is installed too: both write to the same folder."""
    try:
        other = version(CLASHING_DISTRIBUTION)
    except PackageNotFoundError:
        return
    warn(
        f"the distribution {CLASHING_DISTRIBUTION!r} {other}, an unrelated blockchain SDK, is installed beside "
        f"{DISTRIBUTION!r}; both provide the module 'bittensor' and overwrite each other's files. "
        "Keep them in separate environments",
        stacklevel=3,
    )
