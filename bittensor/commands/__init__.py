"""The commands of ``bittensor``, one module each. Not imported by ``import bittensor``."""
