"""A rank is killed while a checkpoint is written: at every call that changes a file, by a loss of
power at each of them, and at random moments. Fresh processes find the newest checkpoint that was
committed, with every byte of it, and the next write removes what is left of the other."""

import os
import random
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from crash_points import dying_at
from launcher import FORKS, run_ranks

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Config
from manyfaces.configs.sections.checkpoint import Checkpoint
from manyfaces.configs.split import class_share
from manyfaces.data.dataset.manifest import IDENTITIES
from manyfaces.train.checkpoint.finder import find, load_parts
from manyfaces.train.checkpoint.layout import read_backbone, read_optimizer
from manyfaces.train.checkpoint.snapshot import Snapshot
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.checkpoint.writer import Checkpointer, Hooks
from manyfaces.train.objectives.objective import HeldByRank0, ShardedRows

WORLD, CLASSES, DIM = 2, 300, 32
STATE = RunState(Config(model=MobileFaceNet()), "fingerprint", CLASSES, seed=3)
LEFT_ALONE = 3
"""How a rank ends whose write failed because the other one is gone."""
SEED, MOMENTS = 15, 200


@dataclass(frozen=True)
class Death:
    """Which rank dies, and when: at a call of its second write, or when it is killed."""

    rank: int
    call: int = 0
    power_loss: bool = False
    killer: Connection | None = None
    """Gets the rank's process id and the seconds of its first write once the second begins."""


def whole(step: int) -> dict[str, torch.Tensor]:
    """The head's state of a step."""
    rows = torch.arange(CLASSES * DIM, dtype=torch.float32).reshape(CLASSES, DIM) + step
    return {"rows": rows, "momentum": -rows, "lengths": rows[:, 0].clone()}


def snapshot(step: int, names: Path) -> Snapshot:
    rank = dist.get_rank()
    here = slice(*class_share(CLASSES, rank, WORLD))
    network = {"w": torch.full((3000,), float(step))} if rank == 0 else {}
    parts = {
        "head": ShardedRows({name: t[here].clone() for name, t in whole(step).items()}, CLASSES),
        "teacher": HeldByRank0({"t": torch.full((2,), float(step))}),
    }
    state = STATE.at(step=step, position=10 * step)
    return Snapshot(state, network, network, parts, names if rank == 0 else None)


def found_step(folder: Path, saver: Checkpointer) -> int:
    """The step of the checkpoint that a run resumes from, all of whose content is that step's."""
    found = find(folder, None, saver.group)
    if found is None:
        return 0
    saver.began_with(found.path)
    step = found.state.step
    here = slice(*class_share(CLASSES, dist.get_rank(), WORLD))
    expected = {name: tensor[here] for name, tensor in whole(step).items()}
    head = {name: torch.full_like(tensor, torch.nan) for name, tensor in expected.items()}
    teacher = {"t": torch.zeros(2)}
    parts = {"head": ShardedRows(head, CLASSES), "teacher": HeldByRank0(teacher)}
    load_parts(found.path, parts, saver.group)
    assert all(torch.equal(head[name], tensor) for name, tensor in expected.items())
    for tensors in (teacher, read_backbone(found.path), read_optimizer(found.path)):
        assert all(torch.equal(t, torch.full_like(t, float(step))) for t in tensors.values())
    assert found.state.position == 10 * step
    return step


def life(folder: Path, expected: int, death: Death) -> None:
    """What a run does, from a resume to the death of one rank: it finds the checkpoint of step
    `expected`, writes two more, keeps two, and dies in the second or behind it."""
    reported = os.open(folder.parent / "reported", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    write, is_first = os.write, dist.get_rank() == 0
    hooks = Hooks(committed=lambda step, path: write(reported, b"%d\n" % step if is_first else b""))
    saver = Checkpointer(folder, Checkpoint(keep=2, max_failures=1), hooks)
    step = found_step(folder, saver)
    assert step == expected
    names = folder.parent / IDENTITIES
    began = time.monotonic()
    saver.save(snapshot(step + 1, names))
    saver.wait()
    took_s = time.monotonic() - began
    left = {path.name for path in folder.iterdir()}
    assert left <= {f"step-{each:08d}" for each in (step, step + 1)}, left
    dist.barrier()
    try:
        if dist.get_rank() != death.rank or death.killer is not None:
            if dist.get_rank() == death.rank and death.killer is not None:
                death.killer.send((os.getpid(), took_s))
            for each in range(step + 2, step + 3 if death.killer is None else step + 10_000):
                saver.save(snapshot(each, names))
                saver.wait()
            return
        with dying_at(death.call, power_loss=death.power_loss):
            saver.save(snapshot(step + 2, names))
            saver.wait()
    except (UserError, RuntimeError):
        os._exit(LEFT_ALONE)


class Folder:
    """A folder of checkpoints in which one run after the other dies."""

    def __init__(self, parent: Path) -> None:
        self.path, self.unfinished = parent / "checkpoints", 0
        """How many deaths have left a write that was cut off."""
        (parent / IDENTITIES).write_text("".join(f"name-{each}\n" for each in range(CLASSES)))

    @property
    def newest(self) -> int:
        """The newest step under the name of a checkpoint, and so a committed one."""
        steps = [int(path.name[5:]) for path in self.path.glob("step-" + "[0-9]" * 8)]
        return max(steps, default=0)

    def survives(self, death: Death) -> bool:
        """Whether a run comes to the end of its second write. Asserts what holds otherwise: what
        was reported as committed stands. The next run asserts that it finds it."""
        before = self.newest
        try:
            run_ranks(WORLD, life, self.path, before, death, timeout_s=300)
        except RuntimeError as error:
            if "died without a word" not in str(error):
                raise
            reported = (self.path.parent / "reported").read_text().split()
            assert self.newest >= max(map(int, reported))
            assert self.newest > before
            self.unfinished += any(self.path.glob("*.tmp-*"))
            return False
        assert self.newest == before + 2
        return True


def killed_at(folder: Folder, rank: int, fraction: float) -> None:
    """Kill a rank in its second write or a later one: after this multiple of the time that its
    first write took."""
    receiver, sender = FORKS.Pipe(duplex=False)

    def kill() -> None:
        pid, took_s = receiver.recv()
        time.sleep(fraction * took_s)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert not folder.survives(Death(rank, killer=sender))
    finally:
        sender.close()
        killer.join()
        receiver.close()


def every_call(folder: Folder, rank: int, power_loss: bool) -> int:
    """Let a rank die at each of the calls of a write; how many there are."""
    call = 1
    while not folder.survives(Death(rank, call, power_loss)):
        call += 1
    return call - 1


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    # The rank that is left ends by itself; a launcher would not wait for it either.
    monkeypatch.setattr("launcher._GRACE_S", 0.1)
    return Folder(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("power_loss", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_death_at_every_call_of_a_write(folder: Folder, rank: int, power_loss: bool) -> None:
    calls = every_call(folder, rank, power_loss)
    print(f"rank {rank}: {calls} calls, {folder.unfinished} unfinished writes")  # noqa: T201
    assert calls > (20 if rank == 0 else 5)
    assert folder.unfinished > 2


@pytest.mark.slow
def test_death_at_random_moments_of_a_write(folder: Folder) -> None:
    moments = random.Random(SEED)
    for number in range(MOMENTS):
        rank, fraction = moments.randrange(WORLD), moments.uniform(0, 1.2)
        print(f"seed {SEED}, moment {number}: rank {rank} after {fraction:.4f} writes")  # noqa: T201
        killed_at(folder, rank, fraction)
    print(f"{folder.unfinished} unfinished writes")  # noqa: T201
    assert folder.unfinished > 0


def test_death_in_a_write(folder: Folder) -> None:
    """Some calls, the commit's own among them, near the end of rank 0's."""
    for death in (Death(0, 20), Death(1, 4, power_loss=True), Death(0, 3, power_loss=True)):
        assert not folder.survives(death)
    assert folder.survives(Death(0, call=10_000))
