"""Samples of a node's use, and of its GPUs as the driver's library tells them."""

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from manyfaces.train.record import Record, read_rows
from manyfaces.train.tracking.machines import Machines
from manyfaces.train.tracking.system import FOLDER, SystemSampler, sampling
from manyfaces.train.tracking.tail import Tail


def samples(run: Path) -> list[dict[str, Any]]:
    [path] = (run / FOLDER).glob("*.jsonl")
    return read_rows(path)


def test_a_node_is_sampled_every_so_often_and_at_the_end(tmp_path: Path) -> None:
    Record(tmp_path).event("start", "began")
    until = time.monotonic() + 60
    with sampling(tmp_path, 0.1, pytest.fail, has_gpus=False):
        while not list((tmp_path / FOLDER).glob("*.jsonl")) or len(samples(tmp_path)) < 2:
            assert time.monotonic() < until
            sum(range(100_000))  # keep the processor in use
        before_the_end = len(samples(tmp_path))
    found = samples(tmp_path)
    assert len(found) > before_the_end
    memory = psutil.virtual_memory()
    for row in found:
        assert 0 <= row["cpu_utilization_percentage"] <= 100
        assert 0 < row["system_memory_usage_megabytes"] < memory.total / 1e6
        assert 0 <= row["step"] < 120  # seconds since the run began
        assert row["disk_available_megabytes"] > 0
        assert row["network_receive_megabytes"] >= 0
    assert max(row["cpu_utilization_percentage"] for row in found) > 0
    later = len(found)
    time.sleep(0.1)
    assert len(samples(tmp_path)) == later


def test_with_0_nothing_is_sampled(tmp_path: Path) -> None:
    with sampling(tmp_path, 0, pytest.fail, has_gpus=True):
        pass
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("fault", [OSError("no /proc/net/dev"), psutil.AccessDenied(), None])
def test_a_network_that_is_not_counted_is_left_out(
    fault: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counters() -> None:
        if fault is not None:
            raise fault

    monkeypatch.setattr(psutil, "net_io_counters", counters)
    with sampling(tmp_path, 60, pytest.fail, has_gpus=False):
        pass
    [row] = samples(tmp_path)
    assert "disk_usage_percentage" in row
    assert not [name for name in row if name.startswith("network")]


def test_a_sample_that_fails_ends_neither_the_sampler_nor_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, failed = psutil.virtual_memory, threading.Event()

    def fails_first() -> Any:
        if failed.is_set():
            return memory()
        failed.set()
        raise psutil.Error("not now")

    monkeypatch.setattr(psutil, "virtual_memory", fails_first)
    with sampling(tmp_path, 0.01, pytest.fail, has_gpus=False):
        assert failed.wait(10)
    assert samples(tmp_path)


class NvmlError(Exception):
    pass


def nvml(**calls: Any) -> SimpleNamespace:
    """A driver's library with two GPUs, the second of which does not tell its power."""

    def power(handle: int) -> int:
        if handle == 1:
            raise NvmlError("not supported")
        return 300_000

    told = {
        "NVMLError": NvmlError,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=90 + handle),
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=20e9, total=80e9),
        "nvmlDeviceGetPowerUsage": power,
    }
    return SimpleNamespace(**{**told, **calls})


def test_gpus_are_sampled_as_far_as_the_driver_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    sampler = SystemSampler(tmp_path, 60, pytest.fail, has_gpus=True)
    sampler.close()
    gpus = {name: value for name, value in sampler.values().items() if name.startswith("gpu_")}
    assert gpus == {
        "gpu_0_utilization_percentage": 90,
        "gpu_0_memory_usage_megabytes": 20_000,
        "gpu_0_memory_usage_percentage": 25,
        "gpu_0_power_usage_watts": 300,
        "gpu_1_utilization_percentage": 91,
        "gpu_1_memory_usage_megabytes": 20_000,
        "gpu_1_memory_usage_percentage": 25,
    }


@pytest.mark.parametrize("missing", ["library", "driver"])
def test_gpus_that_cannot_be_sampled_are_told_and_end_nothing(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise NvmlError("no driver")

    library = None if missing == "library" else nvml(nvmlInit=fails)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    told: list[str] = []
    with sampling(tmp_path, 60, told.append, has_gpus=True):
        pass
    [line] = told
    assert line.startswith("system metrics: the GPUs of ")
    assert ("install nvidia-ml-py" in line) == (missing == "library")
    assert "cpu_utilization_percentage" in samples(tmp_path)[0]


def test_one_rank_of_each_host_samples_it() -> None:
    machines = Machines(("a", "b", "a", "b", "c"), ("CPU",) * 5)
    firsts = [rank for rank in range(5) if machines.is_first_of_host(rank)]
    assert firsts == [0, 1, 4]
    assert machines.facts()["nodes"] == ["a", "b", "c"]
    assert machines.facts()["devices"] == {"CPU": 5}


def test_a_tail_has_each_row_until_it_is_taken_and_all_of_a_file_that_is_new(
    tmp_path: Path,
) -> None:
    record, tail = Record(tmp_path), Tail(tmp_path / "metrics.jsonl")
    assert tail.rows() == []
    for step in (1, 2):
        record.metrics(step, loss=1.0)
    assert [row["step"] for row in tail.rows()] == [1, 2]
    assert [row["step"] for row in tail.rows()] == [1, 2]
    tail.take()
    assert tail.rows() == []
    with tail.path.open("a") as file:
        file.write('{"step": 3, "time": 1.0')
    assert tail.rows() == []
    tail.take()
    with tail.path.open("a") as file:
        file.write("}\n")
    assert [row["step"] for row in tail.rows()] == [3]
    tail.take()
    record.rewind(1)
    record.metrics(2, loss=2.0)
    assert [row["step"] for row in tail.rows()] == [1, 2]


def test_a_tail_reads_a_long_file_in_parts_of_whole_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manyfaces.train.tracking.tail.MOST_BYTES", 10)
    record, tail = Record(tmp_path), Tail(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        record.metrics(step, loss=1.0)
    parts = []
    while rows := tail.rows():
        parts.append([row["step"] for row in rows])
        assert tail.take()
    assert parts == [[1], [2], [3]]
    assert not tail.take()
