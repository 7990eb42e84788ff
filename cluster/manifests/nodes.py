"""How many nodes a run's workers need and what each has to have, by the configuration; and what a
configuration may not hold that goes into a manifest."""

import math
from dataclasses import dataclass

from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Cluster, Config, Elastic
from manyfaces.configs.secrets import keys_with_secrets

USUAL_DECODE_THREADS = 7
"""For each GPU, beside the thread that computes: clouds' machines have 8 to 26 cores a GPU."""
USUAL_WORKERS = 8
"""Workers of a node at most, where nobody says how many: the GPUs of a usual one."""
TRAIN = "python -m manyfaces.train train"
"""What the driver of a run is on any cluster; the configuration's file follows."""


@dataclass(frozen=True)
class Nodes:
    """The nodes that workers stand on; one more is the head of a cluster that has its own."""

    least: int
    most: int
    """How many; more than `least` only for a run whose number of workers may change."""
    workers: int
    """Workers of each."""
    cpus: int
    gpus: int
    """What each has for its workers."""

    @property
    def may_change(self) -> bool:
        """Whether the number of nodes may change while the run goes on."""
        return self.least != self.most


def nodes(config: Config, workers_per_node: int | None, cpus_per_node: int | None) -> Nodes:
    """The nodes for this configuration. Without `workers_per_node` it is the largest number up to
    `USUAL_WORKERS` by which all numbers of workers can be divided; without `cpus_per_node` each
    node has a core for each thread of its workers, those that decode included.

    Raises `UserError` for what a manifest cannot leave open, and for numbers that do not fit.
    """
    cluster = config.cluster
    gpus_per_worker = _gpus_per_worker(cluster)
    least, most = _least_and_most(cluster)
    workers = workers_per_node or _usual(least, most)
    if least % workers or most % workers:
        number = f"{least}" if least == most else f"{least} and {most}"
        raise UserError(
            f"--workers-per-node {workers} does not divide cluster.workers ({number}); each node "
            "has as many workers as the others"
        )
    needed = workers * cluster.threads_per_worker
    decoding = config.data.decode_threads
    if decoding == "auto":  # takes whatever cores there are
        decoding = USUAL_DECODE_THREADS if gpus_per_worker else 1
    cpus = cpus_per_node or needed + workers * decoding
    if cpus < needed:
        raise UserError(
            f"--cpus-per-node {cpus} is too few: {workers} workers of cluster.threads_per_worker "
            f"{cluster.threads_per_worker} need {needed}"
        )
    return Nodes(least // workers, most // workers, workers, cpus, workers * gpus_per_worker)


def _gpus_per_worker(config: Cluster) -> int:
    if config.launcher != "ray":
        raise UserError(
            f"cluster.launcher is {config.launcher}, and a manifest starts the workers through "
            "Ray; set cluster.launcher=ray"
        )
    if config.gpus_per_worker == "auto":
        raise UserError(
            "cluster.gpus_per_worker is auto, and a manifest is for machines that nobody can ask; "
            "set it to 1, or to 0 for workers on CPUs"
        )
    return config.gpus_per_worker


def _least_and_most(config: Cluster) -> tuple[int, int]:
    if isinstance(config.workers, Elastic):
        return config.workers.min, config.workers.max
    if config.workers == "auto":
        raise UserError(
            "cluster.workers is auto, and a manifest has to name a number; set cluster.workers=8, "
            "or cluster.workers='{min: 4, max: 8}'"
        )
    return config.workers, config.workers


def _usual(least: int, most: int) -> int:
    common = math.gcd(least, most)
    return max(number for number in range(1, USUAL_WORKERS + 1) if common % number == 0)


def refuse_secrets(config: Config, remedy: str) -> None:
    """Raise `UserError` where a secret stands in the configuration, which a manifest holds."""
    if keys := keys_with_secrets(config):
        raise UserError(
            f"{', '.join(keys)}: a secret stands in it, and a manifest is kept and read by many; "
            f"take it out and {remedy}"
        )
