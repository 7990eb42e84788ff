"""How many of its node's cores a worker may use beside its own threads."""

import os

import pytest

from manyfaces.cluster.world import spare_cores
from manyfaces.configs.schema import Config
from manyfaces.train.evaluation.decoding import worker_decode_threads


@pytest.mark.parametrize(
    ("cores", "on_node", "threads", "spare"),
    [(208, 8, 1, 25), (2, 2, 1, 1), (2, 1, 1, 1), (64, 2, 8, 24), (4, None, 1, 3), (8, 8, 4, 1)],
)
def test_the_cores_of_a_node_are_shared_by_its_workers(
    cores: int, on_node: int | None, threads: int, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    if on_node is None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(on_node))
    assert spare_cores(threads) == spare
    tree = {"model": {"kind": "vit"}, "cluster": {"threads_per_worker": threads}}
    assert worker_decode_threads(Config.model_validate(tree)) == min(spare, 8)
    given = Config.model_validate({**tree, "data": {"decode_threads": 3}})
    assert worker_decode_threads(given) == 3
