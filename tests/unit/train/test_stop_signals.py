"""Requests to stop in one process: signals, the file that the processes of a run share, and the
time of grace."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from manyfaces.cluster.signals import held_back, listening
from manyfaces.cluster.stop import (
    FILE,
    Stop,
    StoppedAtOnce,
    StoppedError,
    current,
    exit_code,
    run_in_thread,
)
from manyfaces.configs.schema import Config
from manyfaces.train.folder import RunFolder
from manyfaces.train.record import last_event
from manyfaces.train.stopping import share_stop


def eventually(stop: Stop) -> bool:
    waiting = threading.Event()
    for _ in range(100):
        if stop.requested:
            return True
        waiting.wait(0.1)
    return False


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C"), (signal.SIGUSR1, "SIGUSR1")],
)
def test_a_signal_waits_for_a_checkpoint_where_there_is_something_to_save(
    number: signal.Signals, name: str
) -> None:
    before = signal.getsignal(number)
    with listening(60) as stop:
        stop.wait_for_checkpoint()
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert eventually(stop)
        assert stop is current()
        with pytest.raises(StoppedError, match=name):
            stop.check()
    assert signal.getsignal(number) == before


def test_a_signal_interrupts_what_has_nothing_to_save() -> None:
    def wait() -> None:
        with listening(60):
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(30)
            pytest.fail("it went on")

    with pytest.raises(StoppedError, match="stopped by SIGTERM"):
        wait()


def test_a_signal_is_known_while_the_main_thread_cannot_take_it() -> None:
    """Its own thread reads it: here the main thread holds it back in Python."""
    with listening(60) as stop:
        stop.wait_for_checkpoint()
        with held_back():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert eventually(stop)


def test_a_signal_does_not_interrupt_work_that_goes_on_in_a_thread() -> None:
    saves: list[bool] = []

    def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        assert eventually(current())
        while not current().saves:
            threading.Event().wait(0.01)
        raise ValueError("what the work raises")

    def has_something_to_save() -> bool:
        saves.append(bool(saves))  # not from the beginning
        return saves[-1]

    with listening(60), pytest.raises(ValueError, match="what the work raises"):
        run_in_thread(work, has_something_to_save)
    assert saves[:2] == [False, True]


def test_processes_of_a_run_share_a_request_which_is_told_once(tmp_path: Path) -> None:
    told: list[str] = []
    first, second = Stop(), Stop()
    for stop in (first, second):
        stop.tell = lambda reason, ends: told.append(reason)
        stop.share(tmp_path)
    first.ask("SIGTERM")
    assert eventually(second)
    assert second.reason == "SIGTERM"
    second.ask("Ctrl-C")
    third = Stop()
    third.tell = lambda reason, ends: told.append(reason)
    third.share(tmp_path, looks=False)
    third.ask("SIGTERM")  # as torchrun sends it to each process
    assert told == ["SIGTERM"]
    assert (tmp_path / FILE).read_text() == "SIGTERM"


def test_a_full_disk_hinders_no_stop(tmp_path: Path) -> None:
    def full(reason: str, ends: bool) -> None:
        raise OSError(28, "No space left on device")

    stop, other = Stop(), Stop()
    stop.tell = full
    stop.share(tmp_path, looks=False)
    stop.ask("SIGTERM")
    assert stop.requested
    (tmp_path / FILE).write_text("")
    other.share(tmp_path)
    assert eventually(other)


def test_a_process_that_is_to_be_replaced_waits_behind_its_checkpoint(tmp_path: Path) -> None:
    stop, other = Stop(), Stop()
    for each in (stop, other):
        each.share(tmp_path, looks=False)
    stop.save()
    assert (stop.wants_checkpoint, stop.pause_s) == (True, 0.0)
    stop.save(pause_s=60)
    assert 50 < stop.pause_s <= 60
    beats: list[bool] = []

    def beat() -> None:
        """Ray ends this process, which is no reason to go on; then the run is to stop."""
        beats.append(stop.has_paused)
        if len(beats) == 1:
            stop.ask("SIGTERM", alone=True)
        if len(beats) == 3:
            other.ask("Ctrl-C")

    stop.pause(stop.pause_s, beat)
    assert beats[:3] == [True, True, True]
    assert (stop.has_paused, stop.pause_s) == (False, 0.0)


PROGRAM = """
import os, signal, sys, time
from manyfaces.cluster.signals import listening
with listening({grace}) as stop:
    if {saves}:
        stop.wait_for_checkpoint()
    else:
        stop.raises = False  # as where the main thread waits in C
    stop.last_words = lambda reason: print("last words:", reason, flush=True)
    for number in {numbers}:
        os.kill(os.getpid(), number)
        time.sleep(0.6)
    time.sleep(50)
"""


@pytest.mark.parametrize(
    ("grace", "saves", "numbers", "code", "words"),
    [
        (1.0, True, [signal.SIGTERM], 75, "SIGTERM, in too short a time for a checkpoint"),
        (1.0, False, [signal.SIGTERM, signal.SIGTERM], 75, "SIGTERM"),
        (40.0, True, [signal.SIGINT, signal.SIGINT], 130, "a second Ctrl-C, at once"),
    ],
)
def test_a_process_that_does_not_end_is_ended(
    grace: float, saves: bool, numbers: list[int], code: int, words: str
) -> None:
    text = PROGRAM.format(grace=grace, saves=saves, numbers=[int(n) for n in numbers])
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=40, check=False
    )
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith(f"last words: {words}")


def test_torchrun_does_not_start_a_stopped_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exit_code() == 75
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert exit_code() == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "3")
    assert exit_code() == 75


def test_a_signal_of_torchruns_may_be_for_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends the same where a person stops it and where it has lost another worker."""
    tree = {"run": {"dir": str(tmp_path), "name": "r"}, "model": {"kind": "vit"}}
    config = Config.model_validate(tree)
    told = []
    for restarts in ("0", "3"):
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
        with listening(60) as stop:
            share_stop(config, RunFolder.of(config), looks=False)
            stop.tell("SIGTERM", True)
        event = last_event(tmp_path / "r", "stopping")
        assert event is not None
        told.append(event["message"])
    assert told[0].endswith("Ctrl-C again ends it at once")
    assert told[1].endswith("because a worker is gone, all are started again")


def test_an_interruption_is_no_exception_that_a_collective_would_swallow() -> None:
    assert not issubclass(StoppedAtOnce, Exception)
