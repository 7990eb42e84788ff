"""A run in an S3 store: a checkpoint is there whole or not at all, what was changed there is never
taken for it, and every mistake is one line before anything starts."""

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import s3fs
from made_head import made_head, write_checkpoint
from rich.console import Console
from store_server import Proxy

from manyfaces.configs.errors import UserError
from manyfaces.configs.sections.checkpoint import Best, Checkpoint
from manyfaces.train.checkpoint.choice import chosen
from manyfaces.train.checkpoint.commit import (
    COMMIT,
    Commit,
    check_commit,
    corrupt_file,
    read_commit,
)
from manyfaces.train.checkpoint.fetched import fetched, fetched_folder
from manyfaces.train.checkpoint.layout import candidates
from manyfaces.train.checkpoint.store import DamagedError, RunStore
from manyfaces.train.cli.main import main
from manyfaces.train.folder import RUN_FILE, RunFolder
from manyfaces.train.lease import LeaseHeldError, LeaseLostError
from manyfaces.train.lease_holder import Holder
from manyfaces.train.record import EVENTS, METRICS
from manyfaces.train.store_lease import take_store_lease
from manyfaces.train.working_folder import bring

PATIENCE_S = 60.0


@pytest.fixture
def place(
    proxy: Proxy,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> RunStore:
    """Of a run of its own for each test."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    proxy.put("/bucket")
    return RunStore(f"s3://bucket/runs/{request.node.name.partition('[')[0]}", PATIENCE_S)


def checkpoint(folder: Path, step: int) -> Path:
    """A committed checkpoint of this step; a new one each time."""
    path = folder / "checkpoints" / f"step-{step:08d}"
    write_checkpoint(path, ["a", "b"], made_head(2, step), step=step)
    told = {**json.loads((path / COMMIT).read_bytes()), "step": step}
    (path / COMMIT).write_text(json.dumps(told))
    return path


def send(place: RunStore, path: Path) -> Commit:
    commit = read_commit(path)
    assert isinstance(commit, Commit)
    place.put(path, commit.files)
    place.put_commit(path, commit.step, commit)
    return commit


def steps(place: RunStore) -> list[int]:
    return [each.step for each in place.checkpoints() if isinstance(each.commit, Commit)]


def brought(place: RunStore, run: Path) -> str:
    """What a person is told."""
    console = Console(width=1000)
    with console.capture() as told:
        bring(place, RunFolder(run), console, takeover=False)
    return told.get()


def test_it_is_there_once_its_commit_is(proxy: Proxy, place: RunStore, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 7)
    commit = read_commit(path)
    assert isinstance(commit, Commit)
    place.put(path, commit.files)
    place.remote.write("checkpoints/step-00000007/head/of-another-world-size", b"left over")
    (found,) = place.checkpoints()
    assert (found.step, str(found.commit)) == (7, "not committed")
    place.put_commit(path, 7, commit)
    assert steps(place) == [7]
    written = [name for verb, name in proxy.writes if verb == "PUT" and "checkpoints" in name]
    assert written[-1].endswith(COMMIT)
    assert sum(name.endswith(COMMIT) for name in written) == 1
    (found,) = place.checkpoints()
    assert set(found.sizes) == {*commit.files, COMMIT}, "what it does not list is gone"
    place.withdraw(7)
    assert steps(place) == []


def test_one_of_which_a_file_did_not_arrive_is_not_committed(
    proxy: Proxy, place: RunStore, tmp_path: Path
) -> None:
    path = checkpoint(tmp_path, 7)
    commit = read_commit(path)
    assert isinstance(commit, Commit)
    place.put(path, [name for name in commit.files if name != "state.json"])
    with pytest.raises(UserError, match=r"step-00000007: state.json: missing, expected \d+ bytes"):
        place.put_commit(path, 7, commit)
    assert steps(place) == []


def test_a_fresh_machine_gets_every_byte_and_the_record(place: RunStore, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    path = checkpoint(here, 7)
    for name in (METRICS, EVENTS, RUN_FILE, "run.json", "left_out.jsonl"):
        (here / name).write_text(f"{name}\n")
    place.put_record(here, RunFolder(here).kept)
    send(place, path)
    told = brought(place, there)
    assert "fetched step-00000007 to" in told
    assert "every byte compared" in told
    (found,) = candidates(there / "checkpoints")
    assert (found.step, found.fault) == (7, None)
    assert all(
        (found.path / name).read_bytes() == (path / name).read_bytes()
        for name in read_commit(path).files  # type: ignore[union-attr]
    )
    assert (there / METRICS).read_text() == f"{METRICS}\n"
    assert (there / "left_out.jsonl").exists()
    # What is as new as the store's is left alone, and what is newer too.
    (there / METRICS).write_text("mine")
    assert brought(place, there) == ""
    checkpoint(there, 9)
    assert brought(place, there) == ""
    assert (there / METRICS).read_text() == "mine"
    # What is not as it was committed is fetched again, and no byte of it is lost.
    for each in candidates(there / "checkpoints"):
        body = bytearray((each.path / "backbone.safetensors").read_bytes())
        body[-1] ^= 1
        (each.path / "backbone.safetensors").write_bytes(body)
    told = brought(place, there)
    assert "step-00000009: backbone.safetensors: digest differs; the store's are" in told
    assert "fetched step-00000007 to" in told
    assert corrupt_file(found.path) is None
    assert len(list((there / "checkpoints").glob("step-00000007.bad-*"))) == 1


def change(place: RunStore, step: int, how: str) -> None:
    name = f"checkpoints/step-{step:08d}/backbone.safetensors"
    body = place.remote.read(name)
    if how == "other bytes":
        place.remote.write(name, body[:-1] + bytes([body[-1] ^ 1]))
    elif how == "shorter":
        place.remote.write(name, body[:-1])
    elif how == "gone":
        place.remote.remove(name)
    else:
        place.remote.write(f"checkpoints/step-{step:08d}/{COMMIT}", b'{"format": 1, "st')


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("other bytes", "backbone.safetensors: digest differs"),
        ("shorter", r"backbone.safetensors: \d+ bytes, expected \d+"),
        ("gone", "backbone.safetensors: missing, expected"),
        ("torn", f"{COMMIT} is torn"),
    ],
)
def test_a_changed_one_is_passed_over(place: RunStore, tmp_path: Path, how: str, told: str) -> None:
    for step in (7, 8):
        send(place, checkpoint(tmp_path / "here", step))
    change(place, 8, how)
    there = tmp_path / "there"
    line = brought(place, there)
    assert "fetched step-00000007" in line
    assert re.search(rf"passed over step-00000008 \({told}", line), line
    assert [each.name for each in (there / "checkpoints").iterdir()] == ["step-00000007"]
    change(place, 7, how)
    with pytest.raises(UserError, match=r"no newer checkpoint is intact: step-00000008 .*, step-0"):
        brought(place, tmp_path / "other")
    assert "the run goes on from what" in brought(place, own(tmp_path / "own", 3))


def own(run: Path, step: int) -> Path:
    checkpoint(run, step)
    return run


def test_one_that_changes_on_the_way_leaves_nothing(place: RunStore, tmp_path: Path) -> None:
    send(place, checkpoint(tmp_path / "here", 7))
    (found,) = place.checkpoints()
    change(place, 7, "gone")
    with pytest.raises(DamagedError, match=r"backbone.safetensors: missing"):
        place.fetch(found, tmp_path / "there")
    assert list((tmp_path / "there").iterdir()) == []


def test_older_ones_are_removed_but_for_those_that_the_folder_keeps(
    place: RunStore, tmp_path: Path
) -> None:
    for step in (1, 2, 3, 4, 9):
        send(place, checkpoint(tmp_path, step))
    place.withdraw(3)  # cut off
    place.retain(4, Checkpoint(keep=2), {}, standing=[1])
    assert [(each.step, isinstance(each.commit, Commit)) for each in place.checkpoints()] == [
        (9, True),
        (4, True),
        (2, True),
        (1, True),
    ]
    best = Checkpoint(every_steps=1, keep=1, best=Best(metric="lfw/accuracy"))
    place.retain(4, best, {1: 0.5, 2: 0.75}, standing=[])
    assert steps(place) == [9, 4, 2]
    place.retain(4, Checkpoint(every_steps=1, keep=1, keep_every_steps=2), {}, standing=[])
    assert steps(place) == [9, 4, 2]
    change(place, 2, "shorter")
    place.retain(4, Checkpoint(every_steps=1, keep=1, keep_every_steps=2), {}, standing=[])
    assert [each.step for each in place.checkpoints()] == [9, 4, 2], (
        "damaged, and kept for its step"
    )
    place.retain(4, Checkpoint(keep=1), {}, standing=[])
    assert [each.step for each in place.checkpoints()] == [9, 4]
    assert all(
        "step-00000009" in n or "step-00000004" in n for n in place.remote.tree("checkpoints")
    )


def run_at(url: str) -> RunStore:
    s3fs.S3FileSystem.clear_instance_cache()
    return RunStore(url, PATIENCE_S)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://no-such-bucket/runs/x", r"s3://no-such-bucket/runs/x/\.probe-.*; make the bucket, or"),
        ("https://host/runs/x", r"run.dir https://host/runs/x: nothing can be written there; give"),
        ("nonsense://runs/x", r"run.dir nonsense://runs/x: .*; give a local folder, or a URL like"),
        ("gs://bucket/runs/x", r"run.dir gs://bucket/runs/x: the driver for gs:// is not installed: "
         r"pip install manyfaces\[gcs\]"),
    ],
)  # fmt: skip
def test_a_place_that_is_none_is_told(proxy: Proxy, url: str, told: str) -> None:
    with pytest.raises(UserError, match=rf"^{told}"):
        run_at(url).check()


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_that_may_not_write_are_told(
    proxy: Proxy, place: RunStore, status: int
) -> None:
    proxy.put_faults[".probe-"] = [status] * 9
    with pytest.raises(UserError, match=r"\.probe-\w+: .*; set credentials that may read, list, w"):
        place.check()


def test_no_credentials_are_told(
    proxy: Proxy, place: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match=r"NoCredentialsError: .*; set credentials that may read"):
        run_at("s3://bucket/runs/x").check()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_probe_leaves_nothing(place: RunStore) -> None:
    place.check()
    assert not any(".probe" in name for name in place.remote.tree("runs"))
    assert place.remote._fs.find(place.remote._root) == []


def test_one_process_has_it_at_a_time(
    proxy: Proxy, place: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = place.remote
    first = take_store_lease(remote, takeover=False)
    with pytest.raises(LeaseHeldError, match=r"another process writes this run: process \d+ on "):
        take_store_lease(remote, takeover=False)
    first.check()
    second = take_store_lease(remote, takeover=True)
    with pytest.raises(LeaseLostError, match=r"this run was taken over by process \d+ on"):
        first.check()
    first.release()  # which is not the second's
    second.check()
    with pytest.raises(LeaseHeldError):
        take_store_lease(remote, takeover=False)
    second.release()
    third = take_store_lease(remote, takeover=False)
    assert third.number == 3
    assert sorted(remote.tree(".lease")) == [".lease/00000003"]
    third.release()
    # Of two that look at the same moment one is let through.
    monkeypatch.setattr("manyfaces.train.store_lease._newest", lambda remote: 3)
    take_store_lease(remote, takeover=False).release()
    with pytest.raises(LeaseHeldError, match="another process has begun to write this run"):
        take_store_lease(remote, takeover=False)


def elsewhere(remote: Any, **changes: Any) -> None:
    """A holder on another machine."""
    told = {**Holder.here("x" * 32, locked=False).to_json(), "kernel": "other", "host": "far"}
    remote.write(".lease/00000001", json.dumps({**told, **changes}).encode())


def test_a_machine_that_is_dead_is_waited_for(
    place: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(place.remote)
    with pytest.raises(LeaseHeldError, match=r" on far.*; where its machine is dead, the run is f"):
        take_store_lease(place.remote, takeover=False)
    monkeypatch.setattr("manyfaces.train.store_lease.STALE_S", -1.0)
    lease = take_store_lease(place.remote, takeover=False)
    assert lease.number == 2
    lease.release()


def test_a_checkpoint_at_an_url_is_fetched_once(
    proxy: Proxy, place: RunStore, tmp_path: Path
) -> None:
    url, work = place.remote.url, str(tmp_path / "work")
    for step in (7, 8):
        send(place, checkpoint(tmp_path / "here", step))
    for given, step in ((url, 8), (f"{url}/checkpoints/step-00000007", 7)):
        lost = given.replace("//", "/")  # as a path of the command line has lost it
        path = fetched(Path(lost), work)
        run = tmp_path / "work" / "fetched" / "s3" / url[5:]
        assert path == run / "checkpoints" / f"step-0000000{step}"
        assert (check_commit(path), corrupt_file(path)) == (None, None)
        assert chosen(path) == path
    assert not (tmp_path / "work" / "s3").exists(), "the run works there"
    killed = path.with_name("step-00000009.tmp-1a2b3c4d")
    killed.mkdir()
    proxy.gets.clear()
    fetched(url, work)
    assert not killed.exists()
    assert not any("safetensors" in name for name in proxy.gets)
    assert fetched("runs/x", work) == Path("runs/x")
    change(place, 8, "other bytes")
    with pytest.raises(
        UserError, match=r"step-00000008: backbone.safetensors: digest differs; give"
    ):
        fetched(url, str(tmp_path / "elsewhere"))
    with pytest.raises(
        UserError, match=r"/none: no checkpoint there; give the URL of a run, whose"
    ):
        fetched("s3://bucket/none", work)
    with pytest.raises(UserError, match=r"@best: @best is for runs in a folder; give the URL of"):
        fetched(f"{url}@best", work)
    place.withdraw(7)
    with pytest.raises(UserError, match="no committed checkpoint there: not committed"):
        fetched(f"{url}/checkpoints/step-00000007", work)


def test_the_command_line_shows_and_compares_them_there(
    place: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (7, 8, 9):
        send(place, checkpoint(tmp_path / "here", step))
    place.withdraw(9)
    assert main(["checkpoint", "show", place.remote.url]) == 0
    shown = capsys.readouterr().out
    assert [each in shown for each in ("step-00000007", "not committed", "sizes as")] == [True] * 3
    assert main(["checkpoint", "verify", f"{place.remote.url}/checkpoints/step-00000008"]) == 0
    assert "step-00000008: intact" in capsys.readouterr().out
    change(place, 8, "other bytes")
    assert main(["checkpoint", "verify", place.remote.url]) == 2
    told = capsys.readouterr()
    assert "step-00000008: backbone.safetensors: digest differs" in told.out
    assert "step-00000007: intact" in told.out
    (line,) = told.err.splitlines()
    assert f"{place.remote.url}: damaged: step-00000008; restore the files" in line


def test_one_that_is_removed_while_it_is_compared_is_not_called_damaged(
    place: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (7, 8):
        send(place, checkpoint(tmp_path / "here", step))
    compared = RunStore.corrupt_files

    def removed_meanwhile(store: RunStore, stored: Any, *given: Any) -> Any:
        if stored.step == 7:
            store.retain(8, Checkpoint(keep=1), {}, standing=[])
        return compared(store, stored, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunStore, "corrupt_files", removed_meanwhile)
        assert main(["checkpoint", "verify", place.remote.url]) == 0
    told = capsys.readouterr().out
    assert "step-00000008: intact" in told
    assert "step-00000007: removed or written again since it was listed" in told
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunStore, "_fetch", partial(_stands, place))
        assert main(["checkpoint", "verify", place.remote.url]) == 0
    assert not list(fetched_folder(place).iterdir())


def _stands(place: RunStore, there: str, path: Path, *given: Any) -> None:
    assert path.parent.parent == fetched_folder(place)
    path.write_bytes(b"")


def test_it_needs_room(place: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send(place, checkpoint(tmp_path / "here", 7))
    usage = type("Usage", (), {"free": 100})()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        UserError, match=r"disk full: the checkpoint of step 7 in s3://bucket/.* MB"
    ):
        brought(place, tmp_path / "there")


def test_large_files_go_in_parts(
    place: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manyfaces.data.store.remote.PART_BYTES", 5 << 20)  # S3's least
    path = tmp_path / "here" / "checkpoints" / "step-00000007"
    backbone = tmp_path / "large"
    backbone.write_bytes(bytes(range(256)) * (12 << 12))
    write_checkpoint(path, None, made_head(2, 1), backbone=backbone)
    counted: list[int] = []
    place.put(path, read_commit(path).files, counted.append)  # type: ignore[union-attr]
    assert max(counted) == 5 << 20
    send(place, path)
    (found,) = place.checkpoints()
    got = place.fetch(found, tmp_path / "there")
    assert check_commit(got) is None
    assert (got / "backbone.safetensors").read_bytes() == backbone.read_bytes()
