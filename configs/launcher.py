"""Who starts the workers: torchrun, Ray, or nobody, where the process is the only worker itself."""

import os

from manyfaces.configs.sections.cluster import Cluster

_TORCHRUN = "TORCHELASTIC_RUN_ID"  # torchrun gives it to each process that it starts


def under_torchrun() -> bool:
    """Whether torchrun has started this process as a worker."""
    return _TORCHRUN in os.environ


def works_here(config: Cluster) -> bool:
    """Whether this process is a worker itself, rather than one that has Ray start workers."""
    return config.launcher == "process" or under_torchrun()
