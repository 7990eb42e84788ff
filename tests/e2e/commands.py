"""The command line as a person types it, in processes that a test can kill as a tree."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import waiting
import yaml
from launcher import FORKS

TIMEOUT_S = 600
"""After which something hangs; a busy machine takes minutes for what takes seconds."""


def recipe(folder: Path, dataset: Path, **sections: Any) -> Path:
    """A run of seconds: 30 steps of 16 images on a narrow MobileFaceNet at 64 px."""
    tree = {
        "run": {"name": "run", "dir": str(folder / "runs")},
        "data": {
            "path": str(dataset),
            "image_px": 64,
            "augment": [{"kind": "misalign", "shift_px": 2}, "flip"],
        },
        "model": {"kind": "mobilefacenet", "scale": 1, "embedding_dim": 32},
        "head": {"margin": {"kind": "cosface", "m": 0.2}, "scale": 32, "sample_rate": 0.5},
        "train": {"batch_size": 16, "epochs": 4, "optimizer": {"kind": "sgd", "lr": 0.05}},
        "checkpoint": {"every_steps": 5, "keep": 20},
        "tracking": {"log_every_steps": 1},
        "cluster": {"workers": 2},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}  # type: ignore[dict-item]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def forked(
    *words: object, meanwhile: Callable[[int], None] = lambda pid: None
) -> subprocess.CompletedProcess[str]:
    """Run to the end, in a process that need not import what takes seconds: for what is not about
    the process itself, its memory or Ray. `meanwhile` is called with its id while it runs."""
    with tempfile.TemporaryDirectory() as folder:
        args = (folder, dict(os.environ), [*map(str, words)])
        process = FORKS.Process(target=_command, args=args)
        process.start()
        try:
            assert process.pid is not None
            meanwhile(process.pid)
        except BaseException:
            process.kill()
            raise
        process.join(TIMEOUT_S)
        assert process.exitcode is not None, process.kill()
        out, err = (Path(folder, name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess([*map(str, words)], process.exitcode, out, err)


def _command(folder: str, environment: dict[str, str], words: list[str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        with Path(folder, name).open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    from manyfaces.train.cli.main import main

    sys.exit(main(words))


def manyfaces(*words: object) -> subprocess.CompletedProcess[str]:
    """Run to the end, as a person does."""
    command = [sys.executable, "-m", "manyfaces.train", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@contextlib.contextmanager
def started(*words: object) -> Iterator[subprocess.Popen[str]]:
    """Run in the background; whatever happens, the whole tree is gone afterwards."""
    command = [sys.executable, "-m", "manyfaces.train", *map(str, words)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        kill_tree(process)


def kill_tree(process: subprocess.Popen[str]) -> None:
    """kill -9 of the process and all its descendants, children of Ray's daemons too."""
    with contextlib.suppress(psutil.NoSuchProcess):
        tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for one in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
        psutil.wait_procs(tree, timeout=20)
    if process.stdout is not None and not process.stdout.closed:
        process.communicate()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def events(run: Path) -> list[tuple[str, str]]:
    """Kinds and messages of a run's events, but for those that come with every start and with the
    removal of older checkpoints."""
    found = [(row["kind"], row["message"]) for row in rows(run / "events.jsonl")]
    return [(kind, message) for kind, message in found if kind not in ("ready", "retention")]


def wait_until(
    done: Callable[[], Any],
    process: subprocess.Popen[str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Any:
    """What `done` returns once it is true. Fails when the time is over or the process ends
    first."""

    def done_or_ended() -> Any:
        value = done()
        if not value and process is not None and process.poll() is not None:
            value = done()
            told = f"the command ended with {process.returncode}"
            assert value, f"{told}: {process.communicate()[0]}"
        return value

    return waiting.wait_until(done_or_ended, timeout_s)


def ray_workers() -> list[psutil.Process]:
    """The train workers of this machine's Ray clusters that this test's processes started."""
    mine = psutil.Process(os.getpid()).children(recursive=True)
    return [p for p in mine if "RayTrainWorker" in " ".join(_cmdline(p))]


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []
