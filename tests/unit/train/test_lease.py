"""One process writes a run at a time; who is dead is taken over, and stops when it is not."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from manyfaces.cluster.stop import EXIT_CODE
from manyfaces.configs.schema import Config
from manyfaces.train import lease
from manyfaces.train.lease import (
    Launch,
    LeaseHeldError,
    LeaseLostError,
    refuse_held,
    take_launch,
    take_writer,
)
from manyfaces.train.lease_holder import Holder, job

BEGIN = "import sys, time; from pathlib import Path; from manyfaces.train import lease\n"
HOLD = BEGIN + "held = lease.take_launch(Path(sys.argv[1])); print('held', flush=True)\n"
SLEEP = "time.sleep(60)\n"


@contextlib.contextmanager
def process(program: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Runs while the `with` block does, once it has printed its first line."""
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None
        try:
            assert started.stdout.readline() == "held\n"
            yield started
        finally:
            started.kill()
            started.communicate()


def put(folder: Path, holder: Holder, *, seconds_ago: float = 0) -> Path:
    path = folder / ".lease-00000004"
    path.write_text(json.dumps(holder.to_json()))
    heard = path.stat().st_mtime - seconds_ago
    os.utime(path, (heard, heard))
    return path


def snapshot(folder: Path) -> dict[Path, tuple[int, int, bytes]]:
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.iterdir()
    }


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LAUNCH_WAIT_S", 0.0)
    monkeypatch.setattr(lease, "WATCH_S", 0.0)


@pytest.fixture(params=["flock", "no flock"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the file system has locks."""

    def not_supported(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    if request.param == "no flock":
        monkeypatch.setattr(fcntl, "flock", not_supported)
    return str(request.param)


def test_a_live_process_keeps_its_run(tmp_path: Path, locks: str) -> None:
    first = take_launch(tmp_path)
    before = snapshot(tmp_path)
    for second in (refuse_held, take_launch):
        with pytest.raises(LeaseHeldError) as told:
            second(tmp_path)
        assert f"another process writes this run: process {os.getpid()} on " in str(told.value)
        assert re.search(
            rf"heartbeat \d+ s ago; stop it \(kill {os.getpid()}\), or give", str(told.value)
        )
    assert snapshot(tmp_path) == before
    assert first.lost() == ""
    first.release()
    refuse_held(tmp_path)
    second = take_launch(tmp_path)
    assert second.path.name == ".lease-00000002"
    assert list(tmp_path.iterdir()) == [second.path]
    second.release()


def test_what_was_killed_is_taken_over_at_once(tmp_path: Path, locks: str) -> None:
    with process(HOLD + SLEEP, tmp_path) as holder:
        with pytest.raises(LeaseHeldError):
            take_launch(tmp_path)
        holder.kill()
        holder.wait()
        take_launch(tmp_path).release()


def test_another_process_of_the_same_number_is_not_the_holder(tmp_path: Path, locks: str) -> None:
    here = Holder.here("dead", locked=False)
    path = put(tmp_path, dataclasses.replace(here, started="1"))
    take_launch(tmp_path).release()
    assert not path.exists()


def test_a_copied_run_is_held_by_nobody(tmp_path: Path) -> None:
    held = take_launch(tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / held.path.name).write_bytes(held.path.read_bytes())
    take_launch(copy).release()
    held.release()


def test_another_machine_is_believed_by_its_heartbeat(tmp_path: Path, locks: str) -> None:
    elsewhere = dataclasses.replace(
        Holder.here("x", locked=True), kernel="another", host="node7", job="Slurm job 12"
    )
    put(tmp_path, elsewhere, seconds_ago=8)
    with pytest.raises(LeaseHeldError) as told:
        take_launch(tmp_path)
    assert f"process {os.getpid()} on node7, Slurm job 12, since 2" in str(told.value)
    assert re.search(r"heartbeat \d+ s ago", str(told.value))
    assert "60 s after the last heartbeat, or at once with --force-takeover" in str(told.value)
    put(tmp_path, elsewhere, seconds_ago=61)
    refuse_held(tmp_path)
    take_launch(tmp_path).release()


def test_a_silent_machine_is_waited_for_until_it_counts_as_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "STALE_S", 15.0)
    monkeypatch.setattr(lease, "WATCH_S", 0.5)
    elsewhere = dataclasses.replace(Holder.here("x", locked=True), kernel="another", host="node7")
    put(tmp_path, elsewhere, seconds_ago=12)
    told: list[str] = []
    refuse_held(tmp_path, told.append)
    [line] = told
    assert f"{tmp_path}: process {os.getpid()} on node7, since 2" in line
    assert re.search(
        r"has given no sign of life for \d+ s; if none comes, .*this command goes on in -?\d+ s, or "
        r"at once with --force-takeover",
        line,
    )


def test_a_machine_that_gives_a_sign_of_life_keeps_its_run(tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(Holder.here("x", locked=True), kernel="another", host="node7")
    path = put(tmp_path, elsewhere, seconds_ago=12)
    told: list[str] = []

    def beat(line: str) -> None:
        told.append(line)
        os.utime(path)

    with pytest.raises(LeaseHeldError, match=r"process .* on node7, .*heartbeat \d+ s ago"):
        refuse_held(tmp_path, beat)
    assert len(told) == 1


@contextlib.contextmanager
def heartbeats(path: Path, clock_s: float) -> Iterator[None]:
    """A holder beats by a clock that is so many seconds wrong, while the block runs."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.02):
            now = time.time() + clock_s
            os.utime(path, (now, now))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("clock_s", [-3600.0, 3600.0])
def test_no_clock_takes_a_run_from_who_lives_or_keeps_it_for_who_is_dead(
    tmp_path: Path, clock_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A live holder is heard long before: what this is costs time only where nobody beats.
    monkeypatch.setattr(lease, "WATCH_S", 3.0)
    monkeypatch.setattr(lease, "STALE_S", 30.0)
    elsewhere = dataclasses.replace(Holder.here("x", locked=True), kernel="another", host="node7")
    path = put(tmp_path, elsewhere, seconds_ago=-clock_s)
    with heartbeats(path, clock_s):
        for second in (refuse_held, take_launch):
            with pytest.raises(LeaseHeldError, match="on node7"):
                second(tmp_path)
    monkeypatch.setattr(lease, "WATCH_S", 0.5)
    monkeypatch.setattr(lease, "STALE_S", 1.0)
    began, told = time.monotonic(), list[tuple[str, float]]()
    refuse_held(tmp_path, lambda line: told.append((line, time.monotonic() - began)))
    take_launch(tmp_path).release()
    assert time.monotonic() - began >= 0.5
    [(line, told_s)] = told
    assert told_s < 0.5  # before it is waited for
    ago = "3600 s ago" if clock_s < 0 else r"36\d\d|35\d\d s from now, as clocks differ"
    assert re.search(rf"on node7, since .* gave its last sign of life ({ago})", line)
    assert "manyfaces train --force-takeover takes the run at once" in line


def test_a_lease_that_was_taken_by_force_is_lost(tmp_path: Path) -> None:
    first = take_launch(tmp_path)
    second = take_launch(tmp_path, takeover=True)
    assert f"taken over by process {os.getpid()} on " in first.lost()
    with pytest.raises(LeaseLostError):
        first.check()
    second.check()
    first.release()  # which must not touch what is another's
    second.check()
    with pytest.raises(LeaseHeldError):
        refuse_held(tmp_path)
    second.release()
    # What this process still writes in the background is not to be committed any more.
    with pytest.raises(LeaseLostError, match="has let the run go"):
        second.check()


def test_a_file_system_that_does_not_answer_takes_nothing_away_and_stops_no_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.05)
    held = take_launch(tmp_path)
    newest, read = lease._newest, Path.read_bytes
    asked = threading.Event()

    def gone(*_: object) -> Any:
        raise FileNotFoundError

    def fail(*_: object) -> Any:
        asked.set()
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "read_bytes", gone)
    monkeypatch.setattr(lease, "_newest", fail)
    assert asked.wait(60)
    assert held.lost() == ""
    monkeypatch.setattr(lease, "_newest", newest)
    monkeypatch.setattr(Path, "read_bytes", read)
    os.utime(held.path, (1, 1))
    deadline = time.monotonic() + 60
    while held.path.stat().st_mtime == 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held.path.stat().st_mtime > 1
    held.release()


def test_one_of_many_that_start_at_once_has_it(tmp_path: Path) -> None:
    racer = BEGIN + (
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try: lease.take_launch(Path(sys.argv[1])); print('mine', flush=True)\n"
        "except lease.LeaseHeldError: print('refused', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with contextlib.ExitStack() as stack:
        racers = []
        for _ in range(6):
            command = [sys.executable, "-c", racer, str(tmp_path)]
            one = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.callback(one.communicate)
            stack.callback(one.kill)
            racers.append(one)
        told = []
        for words in ("ready", "raced"):
            for one in racers:
                assert one.stdout is not None
                told.append(one.stdout.readline().strip())
            if words == "ready":
                for one in racers:
                    assert one.stdin is not None
                    one.stdin.write("go\n")
                    one.stdin.flush()
    assert sorted(told) == ["mine"] + ["ready"] * 6 + ["refused"] * 5


def test_who_was_slow_to_take_a_free_run_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saw generation 1; since then 2 came and went, and 3 has the run."""
    for _ in range(2):
        take_launch(tmp_path).release()
    third = take_launch(tmp_path)
    newest = lease._newest
    seen = iter([(1, None)])
    monkeypatch.setattr(lease, "_newest", lambda *where: next(seen, None) or newest(*where))
    assert lease._make_next(tmp_path, lease.LAUNCH, None) is None
    assert list(tmp_path.iterdir()) == [third.path]
    third.check()
    third.release()


def test_workers_of_an_older_launch_end_before_new_ones_write(tmp_path: Path) -> None:
    program = HOLD.replace("; print", "; lease.HEARTBEAT_S = 0.1; print") + (
        "lease.take_writer(lease.Launch(Path(sys.argv[1]), held.id))\n" + SLEEP
    )
    with process(program, tmp_path) as older:
        while not list(tmp_path.glob(".writer-*")):
            assert older.poll() is None
        mine = take_launch(tmp_path, takeover=True)
        writer = take_writer(Launch(tmp_path, mine.id))
        # The lock of the older writer went with its process.
        assert older.wait(30) == EXIT_CODE
        assert older.stderr is not None
        assert "error: " in (line := older.stderr.read())
        assert f"taken over by process {os.getpid()}" in line
    writer.check()
    with pytest.raises(LeaseLostError):
        take_writer(Launch(tmp_path, "the older one"))
    writer.release()
    mine.release()


def test_a_stopped_writer_keeps_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes again when it goes on: no lack of heartbeats lets another one in."""
    monkeypatch.setattr(lease, "WRITER_WAIT_S", 0.5)
    program = BEGIN + (
        "lease.take_writer(lease.Launch(Path(sys.argv[1]), None)); print('held', flush=True)\n"
        + SLEEP
    )
    with process(program, tmp_path) as stopped:
        stopped.send_signal(signal.SIGSTOP)
        [path] = tmp_path.glob(".writer-*")
        os.utime(path, (0, 0))
        with pytest.raises(LeaseHeldError, match=f"process {stopped.pid} "):
            take_writer(Launch(tmp_path, None))


@pytest.mark.parametrize("body", [b"", b"7", b"{}", b'{"id": 3}', b"\xff"])
def test_a_lease_that_cannot_be_read_is_held_for_a_minute(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / ".lease-00000001"
    path.write_bytes(body)
    with pytest.raises(LeaseHeldError):
        take_launch(tmp_path)
    os.utime(path, (1, 1))
    take_launch(tmp_path).release()


def test_a_second_run_is_refused_before_anything_else(tmp_path: Path) -> None:
    from manyfaces.train.run import run

    tree = {"run": {"dir": str(tmp_path), "name": "r"}, "model": "vit", "data": {"path": "/none"}}
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / ".ray-x").mkdir()
    held = take_launch(folder)
    with pytest.raises(LeaseHeldError):
        run(Config.model_validate(tree), Console(quiet=True))
    assert {path.name for path in folder.iterdir()} == {".ray-x", held.path.name}
    held.release()


def test_the_job_of_a_holder_is_named() -> None:
    metadata = json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}})
    assert job({"RAY_JOB_CONFIG_JSON_ENV_VAR": metadata}) == "Ray job raysubmit_1"
    assert job({"SLURM_JOB_ID": "7", "TORCHELASTIC_RUN_ID": "none"}) == "Slurm job 7"
    assert job({"TORCHELASTIC_RUN_ID": "none", "RAY_JOB_CONFIG_JSON_ENV_VAR": "[]"}) == ""


def test_the_command_is_refused_before_it_imports_what_is_heavy(tmp_path: Path) -> None:
    held = take_launch(tmp_path)
    words = ["train", "demo", f"run.dir={tmp_path.parent}", f"run.name={tmp_path.name}"]
    program = (
        "import sys; from manyfaces.train.cli.main import main\n"
        f"assert main({words!r}) == 2 and 'torch' not in sys.modules"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "another process writes this run" in ended.stderr
    held.release()
