"""Hours and GPU-hours against arithmetic done by hand, and what they are told to rest on."""

from dataclasses import replace

import pytest

from manyfaces.configs.head_cost import head_cost, scored_columns
from manyfaces.configs.load import load
from manyfaces.configs.objectives.objective import Sizes
from manyfaces.configs.plan import Plan, plan
from manyfaces.configs.plan_lines import lines, sampling_lines
from manyfaces.configs.plan_time import MeasuredRate, step_time, time_lines
from manyfaces.configs.schema import Config
from manyfaces.configs.worker_machine import machine

IMAGES, IDENTITIES = 5_179_510, 93_431


def planned(*words: str) -> tuple[Config, Plan]:
    config = load("pretrain/ms1mv3_r50", ["cluster.workers=8", "cluster.address=auto", *words])
    return config, plan(config, IMAGES, IDENTITIES, 8)


def test_hours_by_hand() -> None:
    config, found = planned("cluster.machine=a100")
    time = step_time(found, machine(config))
    share = found.batch_size // 8
    assert time.backbone_s == pytest.approx(6 * 6_309_330_944 * share / (0.16 * 312e12))
    moved = found.objective.flops / (0.4 * 312e12) + found.objective.traffic_bytes / (0.9 * 2039e9)
    assert time.head_s == pytest.approx(moved)
    assert time.sent_s == (found.network.wire_bytes + found.objective.wire_bytes) / 300e9
    told = dict(time_lines(found, machine(config)))
    hours = time.seconds * found.num_steps / 3600
    assert f"about {hours:.3g} h at" in told["time"]
    assert f"{8 * hours:,.3g} GPU-hours: backbone 9" in told["time"]
    both = " ".join(text for _, text in time_lines(found, machine(config)))
    assert "312 TFLOP/s in 16 bits by the data sheet of A100 SXM 80 GB" in both
    assert "the backbone reaches 16% and the head 40%; assumed, not measured" in both
    assert "300 GB/s that a worker sends in a node" in both


def test_between_nodes_the_network_is_what_sends() -> None:
    config, found = planned("cluster.machine=a100")
    own = machine(config)
    near, far = step_time(found, own), step_time(replace(found, world_size=64), own)
    assert far.sent_s == pytest.approx(near.sent_s * 300 / 25)


def test_a_measured_rate_takes_the_place_of_the_assumption() -> None:
    config, found = planned("cluster.machine=a100")
    rate = MeasuredRate(10_000.0, "as someone says")
    told = dict(time_lines(found, machine(config), rate))
    assert told["time"].startswith("about 2.88 h at 10,000 images/s, 23 GPU-hours: backbone")
    assert told["  measured"] == ("as someone says; the shares are estimated by the arithmetic")
    assert "  assumed" not in told


def test_on_cpus_there_are_no_gpu_hours() -> None:
    config = load("demo", ["cluster.workers=2"])
    found = plan(config, 7200, 600, 2)
    told = dict(time_lines(found, machine(config)))
    assert "GPU" not in str(told)
    assert "80 GFLOP/s a thread" in told["  assumed"] or "a worker sends" in told["  assumed"]


def test_of_an_unknown_network_no_hours_are_told() -> None:
    config = load("demo", ["model={kind: timm, name: resnet18}", "cluster.workers=2"])
    assert time_lines(plan(config, 7200, 600, 2), machine(config)) == []


def test_the_work_of_a_sampling_head_by_the_number_of_workers() -> None:
    """The batch of WebFace42M's recipe costs a worker no column for other workers' classes: at any
    number of workers nearly the drawn share is computed."""
    config = load("pretrain/wf42m_vit_base", ["cluster.address=auto"])
    found = plan(config, 42_474_557, 2_059_906, 64)
    told = dict(sampling_lines(config, found, machine(config)))
    assert list(told)[1:] == ["  1 worker", "  8 workers", "  64 workers", "  512 workers"]
    sizes = Sizes(2_059_906, 512, 24_576, 64, is_gpu=True)
    columns = scored_columns(config.head, sizes)
    assert columns < 0.32 * 32_187
    assert f"{columns:,} of      32,187" in told["  64 workers"]
    assert told["  64 workers"].endswith("31.3%")
    flops = 64 * head_cost(config.head, sizes).flops
    assert flops == 64 * 4 * 2 * 24_576 * columns * 512
    assert f"head {flops / 1e12:.3g} TFLOP" in dict(lines(found))["arithmetic a step"]
    every = load("pretrain/ms1mv3_r50", ["cluster.address=auto"])
    assert sampling_lines(every, found, machine(every)) == []
