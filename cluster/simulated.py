"""Several Ray nodes on this machine, on which a run can be tried as on a cluster."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from math import ceil

from manyfaces.cluster.signals import held_back
from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Cluster, Elastic

STORE_BYTES = 100 << 20
"""Each node's store for Ray's messages; Ray takes at least 75 MiB."""


@contextlib.contextmanager
def simulated_nodes(
    count: int, config: Cluster, tell: Callable[[str], object]
) -> Iterator[Cluster]:
    """Start so many nodes, and end them behind the block; gives the settings of a run on them:
    their address, CPU workers, and one worker a node where `workers` is `auto`. `tell` is told how
    each node can be lost on purpose.

    Raises `UserError` for settings that do not go with nodes on one machine, and where they cannot
    be started.
    """
    _refuse(count, config)
    workers = count if config.workers == "auto" else config.workers
    most = workers.max if isinstance(workers, Elastic) else workers
    # Ray has a node for as many cores as it is told, whether they are there or not.
    cores = ceil(most / count) * config.threads_per_worker
    from ray.cluster_utils import Cluster as Nodes

    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the nodes would give out the same GPU several times
    nodes = Nodes()
    try:
        with held_back():  # what ends the run must not end the nodes before its checkpoint
            for number in range(count):
                node = nodes.add_node(
                    num_cpus=cores, object_store_memory=STORE_BYTES, include_dashboard=False
                )
                if number:
                    pid = node.all_processes["raylet"][0].process.pid
                    tell(f"node {number + 1} of {count}: `kill -9 {pid}` loses it")
        update = {"address": nodes.address, "workers": workers, "gpus_per_worker": 0}
        yield config.model_copy(update=update)
    except RuntimeError as error:
        raise UserError(f"--simulate-nodes {count}: {str(error).splitlines()[0]}") from error
    finally:
        with held_back():
            nodes.shutdown()


def _refuse(count: int, config: Cluster) -> None:
    if config.launcher != "ray":
        raise UserError("--simulate-nodes starts Ray's nodes; leave out cluster.launcher=process")
    if config.address is not None:
        raise UserError(
            f"--simulate-nodes {count}: cluster.address {config.address} is another cluster; leave "
            "out one of them"
        )
    if config.gpus_per_worker == 1:
        raise UserError(
            "--simulate-nodes is for workers on CPUs, as nodes on one machine would share its GPUs;"
            " set cluster.gpus_per_worker=0"
        )
