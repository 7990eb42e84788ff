"""Which device a worker takes, on machines with GPUs that this one does not have."""

import pytest
import torch

from manyfaces.cluster import launch
from manyfaces.cluster.device import count_gpus, worker_device
from manyfaces.configs.errors import UserError
from manyfaces.configs.sections.cluster import Cluster


def machine(
    monkeypatch: pytest.MonkeyPatch, gpus: int, local_rank: int | None, visible: str | None = None
) -> None:
    """One on which torch counts so many GPUs, and always has CUDA: it has asked for it before."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name, value in (("LOCAL_RANK", local_rank), ("CUDA_VISIBLE_DEVICES", visible)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("gpus", "local_rank", "visible", "device"),
    [
        (0, None, None, "cpu"),
        (0, 3, "", "cpu"),  # hidden, after CUDA was asked for
        (4, 3, "", "cpu"),  # and torch has kept the count
        (4, None, None, "cuda:0"),
        (4, 3, None, "cuda:3"),
        (1, 3, "3", "cuda:0"),  # each worker is shown its own
        (2, 1, "2,3", "cuda:1"),
    ],
)
def test_the_device_of_a_worker(
    monkeypatch: pytest.MonkeyPatch,
    gpus: int,
    local_rank: int | None,
    visible: str | None,
    device: str,
) -> None:
    machine(monkeypatch, gpus, local_rank, visible)
    assert worker_device() == torch.device(device)
    assert (count_gpus() > 0) == (device != "cpu")


def test_more_workers_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 2, 3)
    with pytest.raises(UserError, match=r"worker 3 of this machine .* sees 2 GPUs: start one"):
        worker_device()


def test_a_worker_that_must_have_a_gpu_is_refused_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(monkeypatch, 0, None)
    with pytest.raises(UserError, match="gpus_per_worker is 1, and torch sees no GPU"):
        launch.refuse(Cluster(launcher="process", gpus_per_worker=1))
    launch.refuse(Cluster(launcher="process"))
