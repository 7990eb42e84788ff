"""The use of a node's processors, memory, disk, network and GPUs, sampled by one of its workers
into `RUN/system/NODE.jsonl`.

The names of the numbers are those of MLflow's own monitor, which cannot be used here: it asks the
server between samples, and a server that is away ends it. A sample takes a thread some
milliseconds, and asks the driver about GPUs, never a stream of work on them.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from manyfaces.train.metric_names import fit_name
from manyfaces.train.record import EVENTS, append_row, read_rows

FOLDER = "system"
_MB = 1e6
_FAULTS = (OSError, psutil.Error)
"""What psutil raises where the system does not tell."""
_NOT_SAMPLED = f"system metrics: the GPUs of {socket.gethostname()} are not sampled"


class SystemSampler:
    """Samples this node every `period_s` seconds until it is closed, and then once more. With
    `has_gpus` the GPUs of the node are sampled too, whichever of them the run uses; where they
    cannot be, `tell` is given the line that says why."""

    def __init__(
        self, run: Path, period_s: float, tell: Callable[[str], object], *, has_gpus: bool
    ) -> None:
        self.run, self.period_s = run, period_s
        node = fit_name(socket.gethostname()).replace("/", "_")
        self.path = run / FOLDER / f"{node}.jsonl"
        self._gpus = _Gpus(tell) if has_gpus else None
        began = read_rows(run / EVENTS)[:1]
        self._began = began[0]["time"] if began else time.time()
        self._network: Any = None  # bytes of the first sample
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="system", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Sample no more."""
        self._closed.set()
        self._thread.join(timeout=10)

    def values(self) -> dict[str, float]:
        """The use of the node now; of its processors, since it was asked last. The network's bytes
        are those since sampling began, and left out where the system does not count them; the disk
        is the one of the run's folder."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self.run))
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MB,
            "system_memory_usage_percentage": memory.used / memory.total * 100,
            "disk_usage_megabytes": disk.used / _MB,
            "disk_usage_percentage": disk.percent,
            "disk_available_megabytes": disk.free / _MB,
            **self._network_values(),
        }
        if self._gpus is not None:
            values |= self._gpus.values()
        return values

    def _network_values(self) -> dict[str, float]:
        try:
            now = psutil.net_io_counters()
        except _FAULTS:
            return {}
        if now is None:  # a container without a network
            return {}
        before = self._network = self._network or now
        return {
            "network_receive_megabytes": (now.bytes_recv - before.bytes_recv) / _MB,
            "network_transmit_megabytes": (now.bytes_sent - before.bytes_sent) / _MB,
        }

    def _sample(self) -> None:
        with contextlib.suppress(*_FAULTS):
            psutil.cpu_percent()  # it tells the use since this thread has asked last
        self._network_values()
        # A folder that is full or gone costs the sample, nothing else.
        while True:
            ended = self._closed.wait(self.period_s)
            with contextlib.suppress(*_FAULTS):
                self._write()
            if ended:
                return

    def _write(self) -> None:
        now = time.time()
        rounded = {name: round(value, 1) for name, value in self.values().items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Steps count seconds of the run, so that they go on where another machine takes over.
        append_row(self.path, {"step": int(now - self._began), "time": now, **rounded})


class _Gpus:
    """The GPUs of this node, as the driver knows them."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        try:
            import pynvml

            self._nvml = pynvml
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        except ImportError:
            tell(f"{_NOT_SAMPLED}: install nvidia-ml-py there")
        except pynvml.NVMLError as error:
            tell(f"{_NOT_SAMPLED}: its driver says {error}")

    def values(self) -> dict[str, float]:
        """Use, memory and power of each; what a driver does not tell is left out."""
        known: dict[str, float] = {}
        for index, handle in enumerate(self._handles):
            with contextlib.suppress(self._nvml.NVMLError):
                known[f"gpu_{index}_utilization_percentage"] = float(
                    self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu
                )
            with contextlib.suppress(self._nvml.NVMLError):
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                known[f"gpu_{index}_memory_usage_megabytes"] = memory.used / _MB
                known[f"gpu_{index}_memory_usage_percentage"] = memory.used / memory.total * 100
            with contextlib.suppress(self._nvml.NVMLError):
                watts = self._nvml.nvmlDeviceGetPowerUsage(handle) / 1000
                known[f"gpu_{index}_power_usage_watts"] = watts
        return known


@contextlib.contextmanager
def sampling(
    run: Path, period_s: float, tell: Callable[[str], object], *, has_gpus: bool
) -> Iterator[None]:
    """Sample this node while the block runs; never where `period_s` is 0."""
    if period_s == 0:
        yield
        return
    sampler = SystemSampler(run, period_s, tell, has_gpus=has_gpus)
    try:
        yield
    finally:
        sampler.close()
