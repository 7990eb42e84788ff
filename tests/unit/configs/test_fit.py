"""What fits the memory of the workers' machines, what is refused, and that each remedy which is told
makes the run fit."""

import re
from pathlib import Path

import pytest

from manyfaces.configs import this_machine
from manyfaces.configs.fit import fit_lines, remedies, shortage, without_gpus
from manyfaces.configs.load import load
from manyfaces.configs.plan import Plan, plan, world_size
from manyfaces.configs.schema import Config
from manyfaces.configs.this_machine import Gpus, limiting_group, parse_gpus
from manyfaces.configs.worker_machine import machine
from manyfaces.configs.worker_memory import BESIDE_WORKERS

GIB = 1 << 30
R50 = {"model": {"kind": "iresnet", "depth": 50}}
OF_RAY = {"launcher": "ray", "gpus_per_worker": 0}


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A computer of 8 GiB without a GPU."""
    monkeypatch.setattr(this_machine, "memory_bytes", lambda: (8 * GIB, "this machine"))
    monkeypatch.setattr(this_machine, "num_gpus", lambda: 0)


def with_gpus(monkeypatch: pytest.MonkeyPatch, gib: int, host_gib: int) -> None:
    """A computer with eight A100 of so much memory, and so much of its own."""
    found = Gpus("NVIDIA A100-SXM4-80GB", "a100", gib * GIB)
    monkeypatch.setattr(this_machine, "num_gpus", lambda: 8)
    monkeypatch.setattr(this_machine, "gpus", lambda: found)
    monkeypatch.setattr(this_machine, "memory_bytes", lambda: (host_gib * GIB, "this machine"))


def planned(config: Config, images: int = 100_000, identities: int = 10_000) -> Plan:
    return plan(config, images, identities, world_size(config))


@pytest.mark.usefixtures("memory")
def test_workers_share_this_machine_with_what_is_beside_them() -> None:
    two = Config.model_validate({**R50, "cluster": {**OF_RAY, "workers": 2}})
    own = machine(two)
    assert own.memory_bytes == (8 * GIB - BESIDE_WORKERS) / 2
    assert own.known
    alone = Config.model_validate({**R50, "cluster": {"launcher": "process"}})
    assert machine(alone).memory_bytes == 8 * GIB
    elsewhere = Config.model_validate({**R50, "cluster": {**OF_RAY, "address": "auto"}})
    assert not machine(elsewhere).known


@pytest.mark.usefixtures("memory")
def test_what_is_too_large_is_told_with_both_numbers_and_remedies_that_fit() -> None:
    words = ["model={kind: iresnet, depth: 50}", "data.image_px=112", "cluster.workers=2"]
    config = load("demo", words)
    found = planned(config)
    short = shortage(config, found, machine(config))
    assert short is not None
    told = short.told
    needs, has = re.findall(r"[\d.]+ GiB", told)[:2]
    assert float(needs.split()[0]) == pytest.approx(found.memory_bytes / GIB, rel=0.01)
    assert has == "3.02 GiB"
    assert "this machine has 8 GiB, less 1.95 GiB" in told
    found_fitting = re.findall(r"([a-z]+\.[a-z_]+)(=\w+) \(", told.partition("what fits: ")[2])
    keys = [key for key, _ in found_fitting]
    assert keys
    assert len(keys) == len(set(keys)), "of each key one value is told"
    for remedy in map("".join, found_fitting):
        other = load("demo", [*words, remedy])
        assert shortage(other, planned(other), machine(other)) is None, remedy
    assert fit_lines(config, found, machine(config)) == [("does not fit", told)]


@pytest.mark.usefixtures("memory")
def test_a_plan_that_may_be_wrong_by_as_much_is_told_and_not_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = load("demo", ["cluster.launcher=process", "train.batch_size=64"])
    found = planned(config)
    for share, label, is_sure in ((1.1, "may not fit", False), (1.3, "does not fit", True)):
        has = round(found.memory_bytes / share)
        monkeypatch.setattr(this_machine, "memory_bytes", lambda has=has: (has, "this machine"))
        monkeypatch.setattr(this_machine, "num_gpus", lambda: 0)
        short = shortage(config, found, machine(config))
        assert short is not None
        assert short.is_sure == is_sure
        ((told, _),) = fit_lines(config, found, machine(config))
        assert told == label


@pytest.mark.usefixtures("memory")
def test_what_fits_is_told_too() -> None:
    config = load("demo", ["cluster.workers=2"])
    ((label, told),) = fit_lines(config, planned(config), machine(config))
    assert label == "fits"
    assert "of 3.02 GiB a worker" in told


@pytest.mark.usefixtures("memory")
def test_where_no_setting_helps_that_is_told() -> None:
    config = load("demo", ["cluster.workers=1", "train.batch_size=64"])
    found = planned(config, 10_000_000, 10_000_000)
    assert "no single setting makes it fit" in str(shortage(config, found, machine(config)))


@pytest.mark.usefixtures("memory")
def test_a_stated_gpu_and_one_that_is_assumed() -> None:
    words = ["cluster.workers=8", "train.batch_size=8192", "cluster.address=auto"]
    config = load("pretrain/ms1mv3_r50", [*words, "cluster.machine=l4"])
    own = machine(config)
    assert (own.name, own.known, own.memory_bytes) == ("L4", True, 24e9)
    told = str(shortage(config, planned(config), own))
    assert "has 22.4 GiB (L4: by its data sheet)" in told
    assert "engine.activation_checkpointing=true" in told
    assumed = load("pretrain/ms1mv3_r50", words)
    assert not machine(assumed).known
    assert "assumed" in str(fit_lines(assumed, planned(assumed), machine(assumed)))


@pytest.mark.usefixtures("memory")
def test_an_elastic_run_has_to_fit_with_its_fewest_workers() -> None:
    words = ["train.batch_size=16384", "cluster.address=auto", "cluster.machine=a100"]
    fits = load("pretrain/ms1mv3_r50", [*words, "cluster.workers={min: 16, max: 32}"])
    assert shortage(fits, planned(fits), machine(fits)) is None
    config = load("pretrain/ms1mv3_r50", [*words, "cluster.workers={min: 2, max: 32}"])
    told = str(shortage(config, planned(config), machine(config)))
    assert "each of cluster.workers.min=2 workers needs about" in told
    assert "train.micro_batch_size=" in told


@pytest.mark.usefixtures("memory")
def test_torchrun_decides_how_many_workers_an_elastic_run_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["train.batch_size=16384", "cluster.address=auto", "cluster.machine=a100"]
    config = load("pretrain/ms1mv3_r50", [*words, "cluster.workers={min: 2, max: 32}"])
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("WORLD_SIZE", "32")):
        monkeypatch.setenv(name, value)
    assert planned(config).world_size == 32
    assert shortage(config, planned(config), machine(config)) is None


@pytest.mark.usefixtures("memory")
def test_an_elastic_run_is_offered_more_workers_to_go_on_with() -> None:
    words = ["train.batch_size=16384", "cluster.address=auto", "cluster.machine=a100"]
    words.append("engine.activation_checkpointing=true")
    config = load("pretrain/ms1mv3_r50", [*words, "cluster.workers={min: 1, max: 32}"])
    offered = dict(remedies(config, planned(config), machine(config)))
    (least,) = [int(word.rpartition("=")[2]) for word in offered if "workers.min" in word]
    other = load("pretrain/ms1mv3_r50", [*words, f"cluster.workers={{min: {least}, max: 32}}"])
    assert shortage(other, planned(other), machine(other)) is None
    assert (
        offered[f"cluster.workers.min={least}"] == plan(other, 100_000, 10_000, least).memory_bytes
    )


def workers_offered(config: Config) -> list[str]:
    return [
        words
        for words, _ in remedies(config, planned(config), machine(config))
        if words.startswith("cluster.workers")
    ]


def test_no_more_workers_are_offered_than_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, gib=8, host_gib=2048)
    recipe, batch = "pretrain/ms1mv3_r50", "train.batch_size=1024"
    assert workers_offered(load(recipe, [batch, "cluster.workers=4"])) == ["cluster.workers=8"]
    assert workers_offered(load(recipe, [batch, "cluster.workers=8"])) == []
    words = [batch, "cluster.workers=8", "cluster.address=auto", "cluster.machine=l4"]
    assert workers_offered(load(recipe, [*words, "train.batch_size=8192"])) != []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert workers_offered(load(recipe, [batch, "cluster.workers=4"])) == []


@pytest.mark.usefixtures("memory")
def test_a_memory_that_is_given_is_that_of_each_worker() -> None:
    """Fewer workers have no more of it; those of this computer, which share its memory, do."""
    config = load("demo", ["cluster.workers=2", "cluster.gpus_per_worker=0"])
    found = planned(config)
    given = machine(config, 0.9 * found.memory_bytes / 1e9)
    assert not given.shares_memory
    assert workers_offered(config) == ["cluster.workers=1"]
    offered = [words for words, _ in remedies(config, found, given)]
    assert "cluster.workers=1" not in offered


def test_a_gpu_of_no_known_rates_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, gib=22, host_gib=512)
    monkeypatch.setattr(this_machine, "gpus", lambda: Gpus("NVIDIA A10G", None, 22 * GIB))
    own = machine(load("pretrain/ms1mv3_r50", ["cluster.workers=8"]))
    assert (own.name, own.memory_bytes) == ("NVIDIA A10G", 22 * GIB)
    assert "of a NVIDIA A10G no rates are known" in own.assumed
    assert "H100 SXM" in own.assumed


def test_the_gpus_of_this_machine_and_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, gib=80, host_gib=512)
    config = load("pretrain/ms1mv3_r50", ["cluster.workers=8"])
    own = machine(config)
    assert (own.name, own.memory_bytes) == ("A100 SXM 80 GB", 80 * GIB)
    assert shortage(config, planned(config), own) is None
    with_gpus(monkeypatch, gib=80, host_gib=32)
    told = str(shortage(config, planned(config), own))
    assert "8 workers need about 3" in told
    assert "of host memory, and this machine has 32 GiB" in told


@pytest.mark.usefixtures("memory")
def test_a_configuration_for_gpus_says_that_there_are_none() -> None:
    told = without_gpus(load("pretrain/wf42m_vit_base", ["cluster.gpus_per_worker=auto"]))
    assert "no GPU, and 64 workers of 4 threads need 256 CPUs" in str(told)
    stated = without_gpus(load("demo", ["cluster.machine=a100"]))
    assert "cluster.machine is a100" in str(stated)
    for fine in (["cluster.workers=1"], ["cluster.gpus_per_worker=0", "cluster.workers=64"]):
        assert without_gpus(load("demo", fine)) is None
    assert without_gpus(load("pretrain/wf42m_vit_base", ["cluster.address=auto"])) is None


@pytest.mark.parametrize(
    ("told", "name", "card", "mib"),
    [
        ("NVIDIA A100-SXM4-80GB, 81920", "NVIDIA A100-SXM4-80GB", "a100", 81920),
        ("NVIDIA A100-SXM4-40GB, 40960", "NVIDIA A100-SXM4-40GB", "a100-40gb", 40960),
        ("NVIDIA H100 80GB HBM3, 81559\nNVIDIA H100 80GB HBM3, 79000", None, "h100", 79000),
        ("NVIDIA L40S, 46068", "NVIDIA L40S", "l40s", 46068),
        ("NVIDIA L4, 23034", "NVIDIA L4", "l4", 23034),
        ("NVIDIA A10G, 23028", "NVIDIA A10G", None, 23028),
        ("NVIDIA GeForce RTX 4090, 24564", None, "rtx4090", 24564),
    ],
)
def test_gpus_as_the_driver_names_them(
    told: str, name: str | None, card: str | None, mib: int
) -> None:
    found = parse_gpus(told)
    assert found is not None
    assert (found.card, found.memory_bytes) == (card, mib << 20)
    assert name is None or found.name == name


def test_a_driver_that_does_not_answer() -> None:
    assert parse_gpus("NVIDIA-SMI has failed because it could not talk to the driver") is None


def test_the_lowest_limit_of_the_control_groups(tmp_path: Path) -> None:
    inner = tmp_path / "slice" / "job"
    inner.mkdir(parents=True)
    own = "0::/slice/job\n"
    assert limiting_group(own, tmp_path) is None
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text(f"{6 * GIB}\n")
    assert limiting_group(own, tmp_path) == (6 * GIB, inner.parent, False)
    (tmp_path / "memory.max").write_text(f"{4 * GIB}\n")
    assert limiting_group(own, tmp_path) == (4 * GIB, tmp_path, False)
    first = tmp_path / "memory" / "job"
    first.mkdir(parents=True)
    (first / "memory.limit_in_bytes").write_text(f"{2 * GIB}\n")
    found = limiting_group("4:cpu,memory:/job\n3:cpuset:/\n", tmp_path)
    assert found == (2 * GIB, first, True)
    # In a container the path may be the host's, and the limit stands at the root.
    found = limiting_group("0::/host/path/of/container\n", tmp_path)
    assert found == (4 * GIB, tmp_path, False)
