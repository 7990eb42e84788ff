"""Checkpoints of two gloo ranks go to an S3 store in the background: COMMIT.json last, failures told
and made up for, the last one waited for, and nothing of a process that was killed on the way."""

import os
import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from launcher import run_ranks
from store_server import Proxy
from test_checkpoint import snapshot

from manyfaces.configs.errors import UserError
from manyfaces.configs.sections.checkpoint import Checkpoint
from manyfaces.train.checkpoint.commit import COMMIT, Commit, corrupt_file
from manyfaces.train.checkpoint.store import RunStore
from manyfaces.train.checkpoint.uploads import UploadHooks, Uploads
from manyfaces.train.checkpoint.writer import Checkpointer, Hooks

PATIENCE_S = 60.0
Told = list[tuple[str, int, str]]


def saver_of(run: Path, told: Told, may_write: Any = lambda: None, **settings: Any) -> Checkpointer:
    """Writes to the folder, and sends what it commits to the bucket under the folder's name."""
    store = RunStore(f"s3://bucket/runs/{run.name}", PATIENCE_S)
    hooks = UploadHooks(
        sent=lambda step, message: told.append(("sent", step, message)),
        failed=lambda step, message: told.append(("failed", step, message)),
    )
    config = Checkpoint(**{"keep": 2} | settings)
    record = run / "metrics.jsonl"
    if dist.get_rank() == 0:
        run.mkdir(exist_ok=True)
        record.write_text("{}\n")
    uploads = Uploads(store, config, hooks, lambda: [record], may_write)
    return Checkpointer(run / "checkpoints", config, uploads=uploads)


def save(saver: Checkpointer, step: int) -> None:
    """Save and have it sent, or fail to be."""
    saver.save(snapshot(step))
    saver.wait()
    assert saver.uploads is not None
    saver.uploads._wait()


def finished(saver: Checkpointer) -> str:
    """What is wrong in the end; "" if nothing is."""
    assert saver.uploads is not None
    try:
        saver.uploads.finish()
    except UserError as error:
        return str(error)
    return ""


def steps(name: str) -> list[int]:
    found = RunStore(f"s3://bucket/runs/{name}", 5).checkpoints()
    return [each.step for each in found if isinstance(each.commit, Commit)]


def work(folder: Path) -> dict[str, Any]:
    """All that ends by itself, in one group of ranks."""
    return {
        each.__name__: each(folder / each.__name__)
        for each in (sends, fails, slow, follows, shared, unlucky)
    }


@pytest.fixture(scope="module")
def answers(store: Proxy, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of both ranks; what the store was asked to write is kept with it."""
    store.forget()
    store.put("/bucket")
    store.put_faults = {
        "fails/checkpoints/step-00000002/head": [403] * 1000,
        "fails/checkpoints/step-00000004/COMMIT": [403] * 1000,
        "fails/checkpoints/step-00000005/state": [403] * 1000,
    }
    folder = tmp_path_factory.mktemp("runs")
    return [{**each, "writes": [*store.writes]} for each in run_ranks(2, work, folder)]


def sends(run: Path) -> Told:
    told: Told = []
    saver = saver_of(run, told)
    uploads = saver.uploads
    assert uploads is not None
    uploads.begin(None)
    for step in (1, 2, 3):
        save(saver, step)
    assert finished(saver) == ""
    return told


def test_all_ranks_send_their_part_and_the_commit_comes_last(
    answers: list[dict[str, Any]], tmp_path: Path
) -> None:
    told, writes = [each["sends"] for each in answers], answers[0]["writes"]
    assert [[(what, step) for what, step, _ in each] for each in told] == [
        [("sent", 1), ("sent", 2), ("sent", 3)]
    ] * 2
    assert re.fullmatch(r"step 3 is in s3://bucket/runs/sends: 0\.0 MB in .* s", told[0][2][2])
    assert steps("sends") == [3, 2]
    for step in (1, 2, 3):
        put = [
            n
            for verb, n in writes
            if verb == "PUT" and f"sends/checkpoints/step-0000000{step}" in n
        ]
        assert put[-1].endswith(COMMIT)
        assert len(put) == len(set(put))
        assert sum("/head/shard-0000" in name for name in put) == 2
    removed = [
        n for verb, n in writes if verb == "DELETE" and "sends/checkpoints/step-00000001/" in n
    ]
    # Once when it was overwritten, and before all others when it was removed.
    assert [name.endswith(COMMIT) for name in removed[:3]] == [True, True, False]
    store = RunStore("s3://bucket/runs/sends", 5)
    assert corrupt_file(store.fetch(store.checkpoints()[0], tmp_path)) is None


def fails(run: Path) -> tuple[Told, list[str]]:
    told: Told = []
    saver = saver_of(run, told, max_failures=2)
    for step in (1, 2, 3, 4):  # of 2 one file is refused for good, of 4 the last
        save(saver, step)
    first = finished(saver)
    saver.uploads._failures = 1  # type: ignore[union-attr]
    save(saver, 5)
    errors = [first]
    try:
        save(saver, 6)
        saver.wait()
    except UserError as error:
        errors.append(str(error))
    return told, errors


def test_failures_are_told_and_made_up_for(answers: list[dict[str, Any]]) -> None:
    told, errors = answers[0]["fails"]
    assert answers[1]["fails"][1] == errors
    assert [(what, step) for what, step, _ in told] == [
        ("sent", 1),
        ("failed", 2),
        ("sent", 3),
        ("failed", 2),  # which follows, once
        ("failed", 4),
    ]
    assert re.fullmatch(
        r"upload of step 2 FAILED \(.*step-00000002/head/shard-.*: .*; set credentials that may read, "
        r".*\), training goes on; the last one there is step-00000001",
        told[1][2],
    )
    assert re.fullmatch(
        r"the last checkpoint, of step 4, is not in s3://bucket/runs/fails \(.*COMMIT.json: .*"
        r"\); the last one there is step-00000003; it stays at /.*/step-00000004, and the same .*",
        errors[0],
    )
    assert re.search(
        r"upload of step 5 FAILED \(.*; set credentials that may .*\), 2 in a row "
        r"\(checkpoint.max_failures=2\): training stops; the last one there is step-00000003; see",
        errors[1],
    )
    assert steps("fails") == [3, 1]


def save_while_one_is_sent(saver: Checkpointer, steps: Sequence[int]) -> threading.Event:
    """Save these; none is sent before the event is set."""
    assert saver.uploads is not None
    put, goes_on = saver.uploads.store.put, threading.Event()

    def held(*given: Any) -> None:
        goes_on.wait()
        put(*given)

    saver.uploads.store.put = held  # type: ignore[assignment, method-assign]
    for step in steps:
        saver.save(snapshot(step))
        saver.wait()
    return goes_on


def slow(run: Path) -> tuple[Told, list[str]]:
    told: Told = []
    saver = saver_of(run, told, keep=1)
    goes_on = save_while_one_is_sent(saver, (1, 2, 3))
    standing = sorted(path.name for path in (run / "checkpoints").iterdir())
    goes_on.set()
    assert finished(saver) == ""
    return told, standing


def test_training_waits_for_no_upload_and_the_last_one_gets_there(
    answers: list[dict[str, Any]],
) -> None:
    told, standing = answers[0]["slow"]
    assert [(what, step) for what, step, _ in told] == [
        ("failed", 2),
        ("failed", 3),
        ("sent", 1),
        ("sent", 3),
    ]
    assert told[0][2] == (
        "step 2 waits, as step-00000001 is still on its way to s3://bucket/runs/slow; it follows if "
        "it is still kept by then"
    )
    # The folder keeps what is being sent until the next checkpoint, and so does the store.
    assert standing == ["step-00000001", "step-00000003"]
    assert steps("slow") == [3, 1]


def follows(run: Path) -> list[list[int]]:
    """The steps that were sent: by an upload behind which others wait, by the end of a run that is
    stopped meanwhile, and by that of one that is finished."""
    sent = []
    told: Told = []
    saver = saver_of(run, told, keep=1, every_steps=1, keep_every_steps=2)
    assert saver.uploads is not None
    goes_on = save_while_one_is_sent(saver, (1, 2, 3, 4, 5))
    goes_on.set()
    saver.uploads._wait()
    sent.append([step for what, step, _ in told if what == "sent"])
    goes_on = save_while_one_is_sent(saver, (6, 7, 8, 9))
    saver.uploads._hurries = True  # as of now, and not by a thread of the test
    goes_on.set()
    assert finished(saver) == ""
    sent.append([step for what, step, _ in told if what == "sent"])
    saver.uploads.finish(everything=True)
    sent.append([step for what, step, _ in told if what == "sent"])
    return sent


def test_what_had_to_wait_and_is_kept_follows_the_newest_first(
    answers: list[dict[str, Any]],
) -> None:
    first, stopped = [1, 5, 4, 2], [6, 9]
    for each in answers:
        assert each["follows"] == [first, first + stopped, [*first, *stopped, 8]]
    assert steps("follows") == [9, 8, 6, 4, 2]


def dies(run: Path) -> None:
    told: Told = []
    saver = saver_of(run, told)
    save(saver, 1)
    if dist.get_rank() == 0:
        saver.uploads.store.put_commit = lambda *given: os._exit(9)  # type: ignore[union-attr, method-assign]
    save(saver, 2)


def goes_on(run: Path) -> Told:
    told: Told = []
    saver = saver_of(run, told)
    assert saver.uploads is not None
    saver.uploads.begin(run / "checkpoints" / "step-00000002")
    assert finished(saver) == ""
    saver.uploads.begin(run / "checkpoints" / "step-00000002")  # is there, byte for byte
    assert finished(saver) == ""
    return told


@pytest.mark.slow
def test_what_was_killed_on_the_way_is_no_checkpoint_and_is_sent_by_the_next_session(
    proxy: Proxy, tmp_path: Path
) -> None:
    proxy.put("/bucket")
    with pytest.raises(RuntimeError):
        run_ranks(2, dies, tmp_path / "dies")
    assert steps("dies") == [1]
    found = {
        each.step: str(each.commit) for each in RunStore("s3://bucket/runs/dies", 5).checkpoints()
    }
    assert found[2] == "not committed"
    assert [(what, step) for what, step, _ in run_ranks(2, goes_on, tmp_path / "dies")[0]] == [
        ("sent", 2)
    ]
    assert steps("dies") == [2, 1]


def shared(run: Path) -> list[str]:
    """What is wrong in the end where another process has the run, and where one writes there."""
    told: Told = []
    lost: list[str] = []

    def may_write() -> None:
        if lost:
            raise UserError(lost[0])

    saver = saver_of(run.with_name("taken"), told, may_write)
    save(saver, 1)
    lost.append("another process has it")
    save(saver, 2)
    errors = [finished(saver)]
    lost.clear()
    saver = saver_of(run, told)
    save(saver, 1)
    if dist.get_rank() == 0:
        copy_as_step_9(RunStore(f"s3://bucket/runs/{run.name}", 5))
    dist.barrier()
    save(saver, 2)
    errors.append(finished(saver))
    assert [what for what, _, _ in told] == ["sent"] * 2
    return errors


def unlucky(run: Path) -> tuple[Told, str, str]:
    """What was told, what is wrong in the end, and who else is taken for a writer, where the disk
    refuses all that comes after a checkpoint and after its upload."""
    told: Told = []
    saver = saver_of(run, told)
    assert saver.uploads is not None

    def refused(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    saver.hooks = Hooks(committed=refused)
    saver.uploads.hooks = replace(saver.uploads.hooks, failed=refused)
    saver.uploads.store.retain = refused  # type: ignore[method-assign]
    save(saver, 1)
    return told, finished(saver), saver.uploads._other_writer(0)


def test_what_comes_after_a_checkpoint_does_not_keep_it_from_the_store(
    answers: list[dict[str, Any]],
) -> None:
    for each in answers:
        told, wrong, other = each["unlucky"]
        assert ([(what, step) for what, step, _ in told], wrong, other) == ([("sent", 1)], "", "")
    assert steps("unlucky") == [1]


def copy_as_step_9(store: RunStore) -> None:
    for name in store.remote.tree("checkpoints"):
        body = store.remote.read(name)
        if name.endswith(COMMIT):
            body = body.replace(b'"step": 1,', b'"step": 9,')
        store.remote.write(name.replace("step-00000001", "step-00000009"), body)


def test_a_run_that_is_another_process_s_by_now_is_left_alone(
    answers: list[dict[str, Any]],
) -> None:
    taken, newer = answers[0]["shared"]
    assert taken == "rank 0: another process has it"
    assert "another process has put the checkpoint of step 9 there since this run began" in newer
    assert (steps("taken"), steps("shared")) == ([1], [9, 1])
