"""How often workers are restarted: without a new checkpoint as often as is set, and without end
while the run goes on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.exceptions
import ray.train

from manyfaces.cluster import launch, stop
from manyfaces.configs.schema import Cluster

KILLED = {1: RuntimeError("it was killed")}


def fits(
    ends: list[BaseException | None],
    saved: list[int],
    max_failures: int,
    monkeypatch: pytest.MonkeyPatch,
) -> list[int]:
    """Train where Ray's fits end like this, with a newest checkpoint of `saved[n]` after n fits;
    what each was told to be saved."""
    told: list[int] = []

    def trainer(work: launch.Work, *_: object) -> SimpleNamespace:
        told.append(work.payload["saved"])
        return SimpleNamespace(fit=fit)

    def fit() -> None:
        if (end := ends[len(told) - 1]) is not None:
            raise end

    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(launch, "_trainer", trainer)
    monkeypatch.setattr(stop, "_current", stop.Stop())
    work = launch.Work("", "", {}, Path(), lambda: True, lambda: saved[len(told)])
    launch._fit_while_saving(work, Cluster(max_failures=max_failures), str(Path()))
    return told


def lost() -> BaseException:
    return ray.train.WorkerGroupError("lost", KILLED)


def test_a_new_checkpoint_has_restarts_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fits([lost(), lost(), None], [-1, 40, 60, 80], 3, monkeypatch) == [-1, 40, 60]


@pytest.mark.parametrize(
    ("ends", "saved", "max_failures"),
    [([lost()], [40, 40], 3), ([lost(), lost()], [-1, 40, 40], 3), ([lost()], [-1, 40], 0)],
)
def test_without_one_the_run_ends(
    ends: list[BaseException | None],
    saved: list[int],
    max_failures: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(launch.WorkersFailedError, match="times without a new checkpoint; the last"):
        fits(ends, saved, max_failures, monkeypatch)


def test_a_node_that_is_lost_does_not_change_what_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has = iter([{"CPU": 2.0}, {"CPU": 1.0}])
    given: list[dict[str, float]] = []
    ends = iter([lost(), None])

    def trainer(*words: Any) -> SimpleNamespace:
        given.append(words[2])
        return SimpleNamespace(fit=fit)

    def fit() -> None:
        if (end := next(ends)) is not None:
            raise end

    monkeypatch.setattr(ray, "cluster_resources", lambda: next(has))
    monkeypatch.setattr(launch, "_trainer", trainer)
    monkeypatch.setattr(stop, "_current", stop.Stop())
    saved = iter([-1, 40, 40])
    work = launch.Work("", "", {}, Path(), lambda: True, lambda: next(saved))
    launch._fit_while_saving(work, Cluster(workers=2), str(Path()))
    assert given == [{"CPU": 2.0}] * 2


def test_what_is_no_lost_worker_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    end = ray.train.ControllerError(RuntimeError("no place for them within 9 s: start nodes"))
    with pytest.raises(launch.WorkersFailedError, match=r"start the workers: no .*: start nodes$"):
        fits([end], [-1, 40], 3, monkeypatch)
    end = ray.train.ControllerError(RuntimeError("a mistake"))
    with pytest.raises(
        launch.WorkersFailedError, match=r"a mistake; it was tried once .*; look at"
    ):
        fits([end], [-1, 40], 3, monkeypatch)


def test_a_worker_that_dies_before_it_runs_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut_off = ray.train.ControllerError(ray.exceptions.RayActorError())
    assert fits([cut_off, cut_off, None], [-1] * 4, 2, monkeypatch) == [-1] * 3
    with pytest.raises(launch.WorkersFailedError, match=r"tried 2 times .*max_failures=1\); look"):
        fits([cut_off, cut_off, None], [-1] * 4, 1, monkeypatch)
