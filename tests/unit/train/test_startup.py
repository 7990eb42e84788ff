"""What a start costs by part, and what it does not import."""

import subprocess
import sys
import time

import pytest

from manyfaces.train import startup
from manyfaces.train.startup import Startup, process_age_s


def test_the_parts_are_all_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.0, 102.5, 106.5])
    monkeypatch.setattr(startup, "process_age_s", lambda: 3.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    start = Startup()
    start.done("imports")
    start.done("data")
    assert start.take_metrics() == {}
    assert start.end("first step")
    assert not start.end("first step"), "a later step is not of the start"
    start.done("data")
    assert start.seconds == {"process": 3.0, "imports": 2.0, "data": 0.5, "first step": 4.0}
    assert start.total_s == 9.5
    assert start.take_metrics() == {
        "start/process_s": 3.0,
        "start/imports_s": 2.0,
        "start/data_s": 0.5,
        "start/first_step_s": 4.0,
        "start/all_s": 9.5,
    }
    assert start.take_metrics() == {}, "they are recorded once"
    assert str(start) == (
        "first step 9.5 s after its process began: process 3.0, imports 2.0, data 0.5, first step "
        "4.0"
    )


def test_the_age_of_a_process_is_what_it_has_run_for() -> None:
    script = (
        "import time; time.sleep(0.5); from manyfaces.train.startup import process_age_s; "
        "print(process_age_s())"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    took_s = time.monotonic() - began
    assert 0.5 <= float(done.stdout) <= took_s + 0.02  # the kernel counts in hundredths
    assert process_age_s() > 0


BUILT = """
import sys, warnings
warnings.simplefilter("ignore")
import torch, torch.distributed as dist
from manyfaces.configs.schema import Engine as Settings, Train
from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.train.engine import Engine
from manyfaces.train.parameter_groups import groups_of
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
network, train = torch.nn.Linear(2, 2), Train()
groups = groups_of(network, train.optimizer)
settings = Settings(zero_stage=1)
Engine(network, groups, MobileFaceNet(), train, settings, torch.device("cpu"), 1)
print(*sorted({"mlflow", "torch._inductor.compile_fx"} & sys.modules.keys()))
"""


def test_a_worker_imports_neither_mlflow_nor_torchs_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1" if name == "WORLD_SIZE" else "0")
    done = subprocess.run(
        [sys.executable, "-c", BUILT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
