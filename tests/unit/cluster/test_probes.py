"""What a node answers before a run: about folders, interfaces, GPUs and the clock."""

import os
import socket
from itertools import combinations
from pathlib import Path

import pytest

from manyfaces.cluster.preflight import bandwidth, probes
from manyfaces.cluster.preflight.probes import Folder, Gpu, Writing


@pytest.fixture(autouse=True)
def _little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "WRITE_BYTES", 1 << 20)
    monkeypatch.setattr(probes, "BLOCK_BYTES", 1 << 18)


def folder(path: Path, *, is_shared: bool = True) -> Folder:
    return Folder(key="run.dir", path=str(path), is_shared=is_shared)


def test_a_folder_is_written_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    asked, writing = folder(tmp_path / "there" / "runs" / "new"), Writing()
    answer = writing.write(asked, "one")
    assert answer.fault == ""
    assert answer.free_bytes is not None
    assert 0 < answer.free_bytes < os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    assert answer.write_bytes_s is not None
    assert answer.write_bytes_s > 0
    assert probes.seen(asked, ["one", "other"], wait_s=0) == ["one"]
    writing.remove_files()
    assert probes.seen(asked, ["one"], wait_s=0) == []
    writing.remove_folders()
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_folder_that_came_to_be_used_stays(tmp_path: Path) -> None:
    writing = Writing()
    writing.write(folder(tmp_path / "runs"), "one")
    (tmp_path / "runs" / "first").mkdir()
    writing.remove_files()
    writing.remove_folders()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["first"]


def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writing = Writing()
    answer = writing.write(folder(tmp_path / "file" / "runs"), "one")
    writing.remove_files()
    writing.remove_folders()
    assert answer.fault == "Not a directory"
    assert answer.free_bytes is None
    assert (tmp_path / "file").is_file()


def test_only_a_folder_of_the_node_alone_is_counted(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.tar").write_bytes(bytes(5000))
    held = {
        is_shared: Writing().write(folder(tmp_path, is_shared=is_shared), "one").held_bytes
        for is_shared in (True, False)
    }
    assert held == {True: 0, False: 5000 + (1 << 20)}


def test_the_checkpoints_of_a_run_that_goes_on_are_counted(tmp_path: Path) -> None:
    for run in ("mine", "other"):
        (tmp_path / run / "checkpoints" / "step-1").mkdir(parents=True)
        (tmp_path / run / "checkpoints" / "step-1" / "head").write_bytes(bytes(7000))
    asked = Folder(
        key="run.dir",
        path=str(tmp_path),
        is_shared=True,
        held=str(tmp_path / "mine" / "checkpoints"),
    )
    assert Writing().write(asked, "one").held_bytes == 7000


def test_a_path_is_told_without_credentials(tmp_path: Path) -> None:
    asked = Folder(key="run.dir", path=f"{tmp_path}/http://user:PLANTED@h/x", is_shared=True)
    writing = Writing()
    assert "PLANTED" not in writing.write(asked, "one").path
    writing.remove_files()
    writing.remove_folders()
    assert not list(tmp_path.iterdir())


def test_gpus_as_the_driver_lists_them() -> None:
    text = "NVIDIA H100 80GB HBM3, 81559, 580.95.05\nNVIDIA GB10, [N/A], 580.95.05\n"
    assert probes.parse_gpus(text) == (
        (
            Gpu(name="NVIDIA H100 80GB HBM3", memory_mib=81559),
            Gpu(name="NVIDIA GB10", memory_mib=0),
        ),
        "580.95.05",
    )
    assert probes.parse_gpus("") == ((), None)


def test_the_interface_of_an_address() -> None:
    found = probes.interface("127.0.0.1")
    assert found is not None
    assert found.name in [name for _, name in socket.if_nameindex()]
    assert found.mtu == int(Path("/sys/class/net", found.name, "mtu").read_text())
    assert probes.interface("192.0.2.1") is None  # of RFC 5737: nobody's


def fails(payload: dict[str, object]) -> dict[str, object]:
    raise ValueError(f"\n{payload['url']}: no\nmore")


def test_what_a_probe_raises_is_its_fault() -> None:
    name = f"{__name__}:fails"
    answer = probes.asked(name, {"url": "s3://key:PLANTED@bucket"})
    assert answer.fault == "s3://***@bucket: no"
    assert probes.asked("manyfaces.nowhere:none", {}).fault


@pytest.mark.parametrize("size", range(2, 10))
def test_every_two_ranks_meet_once(size: int) -> None:
    met: list[tuple[int, int]] = []
    for partners in bandwidth.rounds(size):
        for one, other in enumerate(partners):
            if other is not None:
                assert partners[other] == one
                met.append((min(one, other), max(one, other)))
    assert sorted(met) == sorted([*combinations(range(size), 2)] * 2)


def test_rounds_are_bounded() -> None:
    assert len(bandwidth.rounds(1000)) == bandwidth.MOST_ROUNDS
