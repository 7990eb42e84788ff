"""What a person sees of jobs: of a late node, of a stop that takes long, and no credentials."""

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from manyfaces.cluster.jobs import Job
from manyfaces.train.cli.main import main

JOB = Job("raysubmit_1", "run", "RUNNING", "", 1.0, None, "node", 3)


class Jobs:
    """A cluster of slow nodes whose jobs go on."""

    address = "http://127.0.0.1:8265"

    def __init__(self, address: str) -> None:
        self.together = threading.Barrier(8, timeout=10)

    def job(self, job: str) -> Job:
        return JOB

    def all(self) -> list[Job]:
        return [replace(JOB, id=f"raysubmit_{number}") for number in range(8)]

    def status(self, job: Job) -> None:
        self.together.wait()

    def stop(self, job: str) -> bool:
        return True

    def wait_for_end(self, job: str, seconds: float) -> Job:
        return JOB

    def follow(self, job: str, write: Callable[[str], object]) -> None:
        for piece in ("first\nhttp://user:PLAN", "TED@host/x\nla", "st"):
            write(piece)


@pytest.fixture(autouse=True)
def _cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manyfaces.cluster.jobs.Jobs", Jobs)


def test_credentials_that_come_in_two_pieces_are_hidden(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["jobs", "logs", "raysubmit_1", "--follow"]) == 0
    assert capsys.readouterr().out == "first\nhttp://***@host/x\nlast"


def test_a_job_that_goes_on_was_not_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "stop", "raysubmit_1"]) == 2
    shown = capsys.readouterr()
    assert "within 3 s, about cluster.grace_s" in shown.out
    [line] = shown.err.splitlines()
    assert line.startswith("error: raysubmit_1: RUNNING still, 13 s after it was asked to stop; `")


def test_the_nodes_of_a_list_are_asked_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "list"]) == 0
    assert "raysubmit_7" in capsys.readouterr().out
