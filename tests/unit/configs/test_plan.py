"""The plan against arithmetic done by hand, and its laws over many shapes of a run."""

from dataclasses import replace
from itertools import pairwise
from math import ceil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyfaces.configs.head_cost import head_cost
from manyfaces.configs.objectives.objective import ObjectiveCost, Sizes
from manyfaces.configs.plan import (
    Plan,
    num_steps,
    plan,
    total_samples,
    warmup_samples,
    world_size,
)
from manyfaces.configs.plan_lines import head_lines, lines
from manyfaces.configs.schema import Config, Head, Rows, UserError
from manyfaces.configs.worker_machine import machine


def make(**tree: object) -> Config:
    return Config.model_validate({"model": {"kind": "iresnet", "depth": 50}, **tree})


def cost_of(head: Head, *sizes: int, is_gpu: bool) -> ObjectiveCost:
    """The cost of a head on so many identities, dimensions, images and workers."""
    return head_cost(head, Sizes(*sizes, is_gpu=is_gpu))


def test_ms1mv3_on_eight_workers_by_hand() -> None:
    config = make(
        train={"batch_size": 1024, "precision": "bfloat16"},
        head={"wire_dtype": "bfloat16"},
        cluster={"gpus_per_worker": 1},
    )
    found = plan(config, 5_179_510, 93_431, 8)
    weights = 43_590_848 * 4
    rows = 11_679 * 512 * 4
    assert found.num_steps == 101_163  # 103,590,200 / 1024
    assert found.images_per_worker == 128
    assert found.network.weight_bytes == weights + weights // 2
    assert found.network.gradient_bytes == weights
    assert (
        found.network.optimizer_bytes == weights // 8 * 2
    )  # momentum and the float32 copy, an eighth of each
    assert found.objective.device_bytes == 2 * rows
    assert found.objective.workspace_bytes == 4 * (1024 * 11679 + 3 * 11679 * 512 + 4 * 1024 * 512)
    assert found.network.activation_bytes == 128 * config.model.cost((112, 112)).activations * 2
    assert found.network.wire_bytes == 2 * (weights // 2 * 7 // 8) + weights * 7 // 8
    assert found.objective.wire_bytes == 2 * 1024 * 512 * 2 * 7 // 8
    assert found.upload_bytes == 128 * 112 * 112 * 3
    assert found.read_bytes == 1024 * 5000
    assert found.checkpoint_bytes == 2 * weights + 2 * 93_431 * 512 * 4
    assert found.network.flops == 6 * 6_309_330_944 * 1024  # 37.9 GFLOP an image
    assert found.whole_objective.flops == 8 * 1024 * 93_431 * 512


def test_zero_stages_and_optimizers() -> None:
    weights = make().model.cost((112, 112)).parameters * 4

    def state(stage: int, **optimizer: object) -> tuple[float, ...]:
        found = plan(
            make(engine={"zero_stage": stage}, train={"optimizer": optimizer}), 1000, 100, 4
        )
        parts = (
            found.network.weight_bytes,
            found.network.gradient_bytes,
            found.network.optimizer_bytes,
            found.network.buffer_bytes,
            found.network.wire_bytes,
        )
        return tuple(part / weights for part in parts)

    assert state(0, kind="sgd") == (1, 1, 1, 0, 1.5)
    assert state(0, kind="sgd", momentum=0) == (1, 1, 0, 0, 1.5)
    assert state(0, kind="adamw") == (1, 1, 2, 0, 1.5)
    assert state(1, kind="adamw") == (1, 1, 0.75, 1, 2.25)
    assert state(2, kind="adamw") == (1, 0.25, 0.75, 1, 2.25)
    assert state(3, kind="adamw") == (0.25, 0.25, 0.75, 1, 1.5)


def test_stage_3_holds_all_weights_between_the_passes() -> None:
    """As DeepSpeed does for networks of fewer than 10^9 weights; under autocast in 16 bits."""
    whole, half = (
        plan(make(engine={"zero_stage": 3}, train={"precision": precision}), 1000, 100, 4).network
        for precision in ("float32", "bfloat16")
    )
    weights = 4 * whole.parameters
    assert (whole.weight_bytes, whole.gathered_bytes) == (weights // 4, weights - weights // 4)
    assert (half.weight_bytes, half.gathered_bytes) == (weights // 4 + weights // 2, 0)
    assert half.wire_bytes * 2 == whole.wire_bytes == 1.5 * weights


@pytest.mark.parametrize(
    ("stage", "sent"), [(0, 1.5), (1, 2.25), (2, 4 * 1.5 + 0.75), (3, 4 * 1.5)]
)
def test_a_batch_in_parts_sends_gradients_at_each_where_no_worker_keeps_them(
    stage: int, sent: float
) -> None:
    """Four micro-batches on four workers: what one sends, in units of the network's weights."""
    config = make(train={"batch_size": 256, "micro_batch_size": 16}, engine={"zero_stage": stage})
    found = plan(config, 1000, 100, 4)
    assert found.network.wire_bytes / (4 * found.network.parameters) == sent


def test_checkpointing_trades_memory_for_arithmetic() -> None:
    vit: dict[str, object] = {"model": {"kind": "vit", "size": "base"}}
    dense, thin = (
        plan(make(**vit, engine={"activation_checkpointing": on}), 1000, 100, 1)
        for on in (False, True)
    )
    assert thin.network.activation_bytes * 8 == dense.network.activation_bytes
    assert thin.network.flops * 3 == dense.network.flops * 4


def test_a_batch_in_parts_keeps_the_activations_of_one_for_another_forward_pass() -> None:
    whole, parts = (
        plan(make(train={"batch_size": 256, "micro_batch_size": size}), 1000, 100, 2)
        for size in (None, 32)
    )
    embeddings = 2 * 128 * 512 * 4
    assert (parts.network.activation_bytes - embeddings) * 4 == whole.network.activation_bytes
    assert parts.network.flops * 3 == whole.network.flops * 4
    assert parts.memory_bytes < whole.memory_bytes
    assert parts.objective == whole.objective


def test_counts_in_decimals_and_rounds_up_to_whole_steps() -> None:
    config = make(train={"epochs": 0.1, "batch_size": 3, "warmup_epochs": 0.3})
    assert num_steps(config, 90) == 3  # not 4, as 0.1 * 90 / 3 is in no binary
    assert warmup_samples(config, 90) == 27
    assert num_steps(make(train={"epochs": 1, "batch_size": 64}), 65) == 2
    assert total_samples(make(train={"epochs": 1, "batch_size": 64}), 65) == 128


def test_world_size() -> None:
    assert [
        world_size(make(cluster={"workers": workers})) for workers in (3, {"min": 2, "max": 5})
    ] == [3, 5]


def test_what_cannot_run() -> None:
    with pytest.raises(UserError, match=r"train\.batch_size 4 is below 5 workers"):
        plan(make(train={"batch_size": 4}), 100, 10, 5)
    with pytest.raises(UserError, match="nothing to train on"):
        plan(make(), 0, 0, 1)


SHAPES = st.fixed_dictionaries(
    {
        "epochs": st.floats(0.01, 50),
        "batch_size": st.integers(64, 30_000),
        "num_images": st.integers(1, 10**9),
        "num_identities": st.integers(1, 10**8),
        "stage": st.integers(0, 2),
        "dtype": st.sampled_from(["float32", "bfloat16"]),
    }
)


@given(
    shape=SHAPES,
    workers=st.lists(st.integers(1, 64), min_size=2, max_size=4, unique=True).map(sorted),
)
@settings(derandomize=True, deadline=None, max_examples=80)
def test_laws(shape: dict[str, int], workers: list[int]) -> None:
    train = {
        "epochs": shape["epochs"],
        "batch_size": shape["batch_size"],
        "precision": shape["dtype"],
    }
    config = make(
        train=train, head={"wire_dtype": shape["dtype"]}, engine={"zero_stage": shape["stage"]}
    )
    plans = [plan(config, shape["num_images"], shape["num_identities"], each) for each in workers]
    for found in plans:
        assert (
            0
            <= found.num_samples - shape["epochs"] * shape["num_images"]
            < shape["batch_size"] + 1e-3 * found.num_samples
        )
        assert found.num_samples == found.num_steps * shape["batch_size"]
        assert found.images_per_worker == ceil(shape["batch_size"] / found.world_size)
        assert found.memory_bytes >= found.network.weight_bytes + found.objective.device_bytes > 0
        assert all(label.strip() and text for label, text in lines(found))
    for fewer, more in pairwise(
        plans
    ):  # more workers never need more memory each, and never change what is learnt or kept
        assert more.memory_bytes <= fewer.memory_bytes
        assert _of_the_run(more) == _of_the_run(fewer)
    if workers[0] == 1:
        assert plans[0].network.wire_bytes == plans[0].objective.wire_bytes == 0


def _of_the_run(found: Plan) -> tuple[int, ...]:
    return (
        found.num_steps,
        found.num_samples,
        found.checkpoint_bytes,
        found.network.flops,
        found.whole_objective.flops,
        found.read_bytes,
    )


def test_lines_are_short_and_for_people() -> None:
    config = make(train={"batch_size": 1024, "warmup_epochs": 2})
    found = plan(config, 5_179_510, 93_431, 8)
    told = dict(lines(found))
    assert told["dataset"] == "5,179,510 images of 93,431 identities"
    assert told["backbone"] == "43.6 M parameters, 6.31 G multiply-adds an image"
    assert (
        told["steps"]
        == "101,163 of 1,024 images (20 epochs, 103,590,912 samples, warm-up 10,359,020)"
    )
    assert told["workers"] == "8, 128 images each"
    assert told["  gradients"] == "166 MiB"
    assert "38.8 TFLOP" in told["arithmetic a step"]
    assert all(len(label) + len(text) < 110 for label, text in lines(found))
    rest = 3 * 1024**4 - found.network.checkpoint_bytes
    assert (
        dict(lines(replace(found, whole_objective=ObjectiveCost(state_bytes=rest))))["checkpoint"]
        == "3 TiB, 9 TiB in all"
    )


def test_head_settings_are_compared_and_the_quickest_that_fits_is_named() -> None:
    config = make(train={"batch_size": 256}, cluster={"gpus_per_worker": 1})
    found = plan(config, 260_000_000, 100_000_000, 1)
    told = dict(head_lines(config, found, machine(config, 141)))
    assert [label.strip() for label in told][1] == "sgd float32, recompute"
    assert told["  sgd float32, recompute"].endswith("this recipe, does not fit")
    assert not told["  rowwise float16, recompute"].endswith("fit")  # 103 GB
    assert "  rowwise float16, store16" not in told  # on a GPU it switches the kernels off
    assert told["cheapest in 131 GiB"] == "rowwise float8, recompute"
    told = dict(head_lines(config, found, machine(config, 80)))
    assert told["  rowwise float16, recompute"].endswith("does not fit")
    assert told["cheapest in 74.5 GiB"] == "rowwise float8, recompute"
    assert "none" in dict(head_lines(config, found, machine(config, 40)))["cheapest in 37.3 GiB"]
    config = make(train={"batch_size": 64}, cluster={"gpus_per_worker": 0, "workers": 1})
    told = dict(head_lines(config, plan(config, 10_000, 1000, 1), machine(config, 100)))
    assert told["cheapest in 93.1 GiB"] == "rowwise float8, store16"


@pytest.mark.parametrize(
    ("rows", "each"),
    [
        ({}, 4096),
        ({"dtype": "float16"}, 3072),
        ({"optimizer": "rowwise", "dtype": "float16"}, 1032),
        ({"optimizer": "rowwise", "dtype": "float8"}, 520),
        ({"optimizer": "adamw"}, 6148),
        ({"optimizer": "adamw", "dtype": "float16"}, 5124),
        ({"lazy_decay": True}, 4100),
        ({"lazy_decay": True, "momentum": 0}, 2052),
    ],
)
def test_bytes_of_a_class(rows: dict[str, Any], each: int) -> None:
    head = Head(rows=Rows(**rows))
    assert cost_of(head, 1000, 512, 8, 1, is_gpu=True).state_bytes == each * 1000
    assert cost_of(head, 1000, 512, 8, 3, is_gpu=True).state_bytes == each * 334


@pytest.mark.parametrize(
    ("rows", "each"),
    [
        ({}, 4096),
        ({"optimizer": "rowwise", "dtype": "float16"}, 1032),
        ({"lazy_decay": True}, 4100),
    ],
)
@pytest.mark.parametrize("sub_centers", [1, 3])
def test_rows_on_the_host_leave_the_chosen_ones_on_the_device(
    rows: dict[str, Any], each: int, sub_centers: int
) -> None:
    tree = {"sample_rate": 0.1, "rows": rows, "sub_centers": sub_centers}
    on_device, on_host, on_cpu = (
        cost_of(
            Head.model_validate({**tree, "placement": where}), 80_000, 512, 64, 8, is_gpu=is_gpu
        )
        for where, is_gpu in (("device", True), ("host", True), ("host", False))
    )
    each, whole, chosen = each * sub_centers, 10_000, 1000 + 45
    assert (on_device.device_bytes, on_device.host_bytes, on_device.travel_bytes) == (
        each * whole,
        0,
        0,
    )
    copies = chosen * (each + 4)
    assert (on_host.device_bytes, on_host.host_bytes, on_host.travel_bytes) == (
        copies,
        each * whole + copies,
        2 * chosen * each,
    )
    assert (on_cpu.device_bytes, on_cpu.host_bytes) == (each * whole + copies, 0)  # one memory
    assert on_host.state_bytes == on_cpu.state_bytes == on_device.state_bytes


def test_a_plan_with_rows_on_the_host() -> None:
    plans = []
    for placement in ("device", "host"):
        head = {
            "sample_rate": 0.1,
            "placement": placement,
            "rows": {"optimizer": "rowwise", "dtype": "float16"},
        }
        config = make(train={"batch_size": 256}, cluster={"gpus_per_worker": 1}, head=head)
        plans.append(plan(config, 260_000_000, 100_000_000, 1))
    on_device, on_host = plans
    assert on_device.memory_bytes - on_host.memory_bytes == 100_000_000 * 1032 - 10_000_256 * 1036
    assert on_host.checkpoint_bytes == on_device.checkpoint_bytes
    told = dict(lines(on_host))
    assert set(told) - set(dict(lines(on_device))) == {"chosen rows a step"}
    snapshot = "checkpoint snapshot, 96.4 GiB"
    process = "process, 4 GiB"
    assert dict(lines(on_device))["host memory a worker"] == f"{snapshot}; {process}"
    assert told["host memory a worker"] == f"head rows and state, 106 GiB; {snapshot}; {process}"
    assert (
        told["chosen rows a step"]
        == "19.2 GiB to the device and back a worker, beside the backbone"
    )
    assert dict(head_lines(config, on_host, machine(config, 40)))[
        "cheapest in 37.3 GiB"
    ].startswith("rowwise float8")
    assert dict(head_lines(config, on_host, machine(config, 8)))["cheapest in 7.45 GiB"].startswith(
        "none"
    )


def test_the_copy_that_a_checkpoint_is_written_from_counts_as_memory() -> None:
    """18 million identities of 520 bytes each fit 16 GB only without it."""

    def planned(background: bool, gpus: int = 0) -> tuple[Config, Plan]:
        config = make(
            model={"kind": "mobilefacenet"},
            head={"rows": {"optimizer": "rowwise", "dtype": "float8"}, "sample_rate": 0.1},
            train={"batch_size": 64},
            cluster={"gpus_per_worker": gpus, "workers": 1},
            checkpoint={"background": background},
        )
        return config, plan(config, 100_000_000, 18_000_000, 1)

    (config, copied), (_, waiting) = planned(True), planned(False)
    copy = 18_000_000 * 520 + copied.network.checkpoint_bytes
    assert copied.memory_bytes - waiting.memory_bytes == copy
    assert dict(lines(copied))["  checkpoint snapshot"] == "8.73 GiB"
    assert "snapshot" not in str(lines(waiting))
    assert dict(lines(waiting))["checkpoint"].endswith("training waits for it")
    fits = [
        dict(head_lines(config, each, machine(config, 16)))["cheapest in 14.9 GiB"]
        for each in (copied, waiting)
    ]
    assert fits[0].startswith("none: ")
    assert fits[0].endswith("checkpoint.background=false")
    assert fits[1].startswith("rowwise float8")
    on_gpu = planned(True, gpus=1)[1]
    assert on_gpu.memory_bytes == planned(False, gpus=1)[1].memory_bytes
    assert dict(lines(on_gpu))["host memory a worker"].startswith("checkpoint snapshot, 8.73 GiB;")


def test_lazy_decay_moves_drawn_rows_and_their_momentum_once_more() -> None:
    def traffic(**head: Any) -> int:
        return cost_of(Head(**head), 100_000, 512, 0, 1, is_gpu=False).traffic_bytes

    eager, lazy = (traffic(sample_rate=0.1, rows=Rows(lazy_decay=on)) for on in (False, True))
    assert eager == 10_000 * (3 + 2) * 2048
    assert lazy == eager + 10_000 * (4 * 2048 + 2 * 4)
    assert traffic(rows=Rows(lazy_decay=True)) == traffic(rows=Rows()) + 100_000 * 2 * 4


@pytest.mark.parametrize(("gpus", "chunk"), [(0, 2064), (1, 16384)])
def test_chunks_are_counted_as_the_device_has_them(gpus: int, chunk: int) -> None:
    config = make(train={"batch_size": 256}, cluster={"gpus_per_worker": gpus, "workers": 1})
    scores_rows_and_gradients = 4 * (256 * chunk + 3 * chunk * 512 + 4 * 256 * 512)
    assert (
        plan(config, 1_000_000, 100_000, 1).objective.workspace_bytes == scores_rows_and_gradients
    )


def test_an_objective_without_a_head_has_no_lines_about_one() -> None:
    triplet: dict[str, object] = {"objective": "triplet", "data": {"order": "pk"}}
    config = make(train={"batch_size": 128}, **triplet)
    found = plan(config, 10_000, 1000, 2)
    assert not found.has_head
    assert found.objective.device_bytes == found.whole_objective.state_bytes == 0
    assert found.checkpoint_bytes == found.network.checkpoint_bytes
    assert found.objective.wire_bytes == 128 * 512 * 4  # embeddings out, gradients back, each half
    told = lines(found) + head_lines(config, found, machine(config, 80))
    assert not [label for label, text in told if "head" in label + text]
    assert dict(told)["  objective workspace"] == "1.75 MiB"


def test_a_sum_costs_what_its_parts_cost() -> None:
    pk: dict[str, object] = {"data": {"order": "pk"}, "train": {"batch_size": 128}}
    other = {"kind": "triplet", "wire_dtype": "bfloat16"}
    softmax, triplet, both, apart = (
        plan(make(objective=objective, **pk), 10_000, 1000, 2)
        for objective in (
            "margin_softmax",
            "triplet",
            {"kind": "sum", "of": ["margin_softmax", "triplet"]},
            {"kind": "sum", "of": ["margin_softmax", other]},
        )
    )
    # They share one exchange of the embeddings, where its type is the same.
    assert both.objective == replace(
        softmax.objective + triplet.objective, wire_bytes=128 * 512 * 4
    )
    assert apart.objective.wire_bytes == 128 * 512 * (4 + 2)
    assert both.has_head
    config = make(objective={"kind": "sum", "of": ["margin_softmax", "triplet"]}, **pk)
    own = head_lines(config, both, machine(config, 80))[1][1]
    total = dict(lines(both))["memory a worker"].removeprefix("about ")
    assert own.split()[:2] == total.split()


def test_a_quality_head_costs_a_layer_and_the_search_for_the_nearest_class() -> None:
    def cost(objective: str, world: int, **tree: object) -> ObjectiveCost:
        made = make(objective=objective, train={"batch_size": 128}, **tree)
        return plan(made, 1_000_000, 10_000, world).objective

    layer = 512 + 1
    for world in (1, 2):
        plain, both = cost("margin_softmax", world), cost("cr_fiqa", world)
        more = {name: value - getattr(plain, name) for name, value in vars(both).items()}
        assert more == {
            "parameters": layer,
            "state_bytes": 4 * layer * 2,  # weights and momentum
            "device_bytes": 4 * layer * 3,  # and gradients
            "workspace_bytes": 4 * 128 * 2064,  # a copy of the cosines of a chunk
            # Forward and twice backward of this worker's images, and a look at every score.
            "flops": 3 * 2 * 128 // world * layer + 128 * 10_000 // world,
            "wire_bytes": (world - 1) * 4 * (128 + layer),  # an all-reduce of two sends each half
            "host_bytes": 0,
            "travel_bytes": 0,
            "traffic_bytes": 0,
        }
    adamw = {"train": {"batch_size": 128, "optimizer": "adamw"}}
    more_states = plan(make(objective="cr_fiqa", **adamw), 10_000, 1000, 1).objective.state_bytes
    assert more_states == plan(make(**adamw), 10_000, 1000, 1).objective.state_bytes + 12 * layer
