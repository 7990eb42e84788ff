"""Whether a cluster starts nodes by itself, by what Ray keeps of its autoscaler."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import ray.autoscaler.v2.utils
import ray.experimental.internal_kv
import yaml

from manyfaces.cluster import autoscaler, launch
from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Cluster

BY_HAND = f"node_{'0a' * 28}"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    cluster(monkeypatch, None)
    return tmp_path


def cluster(
    monkeypatch: pytest.MonkeyPatch, status: Mapping[str, Any] | None, *, is_v2: bool = False
) -> None:
    """A cluster that keeps this status."""
    kept = None if status is None else json.dumps(status).encode()
    monkeypatch.setattr(ray.experimental.internal_kv, "_internal_kv_get", lambda key: kept)
    monkeypatch.setattr(ray.autoscaler.v2.utils, "is_autoscaler_v2", lambda **_: is_v2)


@pytest.mark.parametrize(
    ("status", "is_v2", "expected"),
    [
        (None, False, False),
        ({"time": 1.0}, False, False),
        ({"autoscaler_report": {"active_nodes": {BY_HAND: 1}}}, False, False),
        ({"autoscaler_report": {"active_nodes": {"head": 1}}}, False, True),
        (None, True, True),
    ],
)
def test_an_autoscaler_that_only_watches_is_none(
    status: Mapping[str, Any] | None,
    is_v2: bool,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster(monkeypatch, status, is_v2=is_v2)
    assert autoscaler.autoscales() == expected
    assert autoscaler.launched_groups() == []


def test_what_ray_up_may_start_is_read_on_its_head(home: Path) -> None:
    kinds = {
        "head": {"resources": {"CPU": 0}},
        "workers": {"resources": {"CPU": 96, "GPU": 8}, "max_workers": 9},
    }
    told = {"max_workers": 4, "head_node_type": "head", "available_node_types": kinds}
    (home / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(told))
    assert autoscaler.autoscales()
    assert autoscaler.launched_groups() == [
        {"name": "head", "has": {"CPU": 0}, "most": 1},
        {"name": "workers", "has": {"CPU": 96, "GPU": 8}, "most": 4},
    ]
    del kinds["workers"]["resources"]
    (home / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(told))
    assert autoscaler.launched_groups() == []


def test_a_run_waits_for_nodes_that_an_autoscaler_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work = launch.Work("", "", {"name": "run"}, Path(), lambda: False)
    config = Cluster(workers=8, gpus_per_worker=1, address="auto")
    with pytest.raises(UserError, match="8 CPUs, the cluster has 0"):
        launch._trainer(work, config, {}, str(tmp_path))
    cluster(monkeypatch, None, is_v2=True)
    scaling = launch._trainer(work, config, {}, str(tmp_path)).scaling_config
    assert (scaling.num_workers, scaling.use_gpu) == (8, True)
