"""What makes two runs the same experiment, and what decides a checkpoint's tensors."""

from pathlib import Path
from typing import Any

import pytest

from manyfaces.configs.files import file_sha256
from manyfaces.configs.identity import differences, flatten, identity, tensors
from manyfaces.configs.schema import Config


def make(**tree: object) -> Config:
    return Config.model_validate({"model": {"kind": "iresnet", "depth": 18}, **tree})


@pytest.mark.parametrize(
    ("tree", "results", "decides_tensors"),
    [
        ({"run": {"seed": 1}}, ["run.seed"], []),
        ({"run": {"name": "a", "dir": "b"}}, [], []),
        ({"data": {"path": "x", "decode_threads": 3, "verify": "hashes"}}, [], []),
        ({"data": {"order": {"kind": "shuffle", "window_shards": 3}}}, ["data.order.window_shards"], []),
        ({"data": {"image_px": 56}}, ["data.image_px"], ["data.image_px"]),
        ({"model": {"kind": "iresnet", "depth": 34}}, ["model.depth"], ["model.depth"]),
        ({"model": {"kind": "iresnet", "depth": 18, "dropout": 0.1}}, ["model.dropout"], []),
        ({"model": {"kind": "iresnet", "depth": 18, "neck": "none"}}, ["model.neck"], ["model.neck"]),
        ({"model": {"kind": "iresnet", "depth": 18, "init": "x.pth"}}, ["model.init"], []),
        ({"model": {"kind": "iresnet", "depth": 18, "pixel_mean": [1, 2, 3]}}, ["model.pixel_mean"], []),
        ({"head": {"scale": 32, "margin": {"m": 0.4, "kind": "arcface"}}}, ["head.margin.m", "head.scale"], []),
        ({"head": {"sub_centers": 3}}, ["head.sub_centers"], ["head.sub_centers"]),
        ({"head": {"placement": "host", "sample_rate": 0.1}}, ["head.sample_rate"], []),
        ({"head": {"rows": {"momentum": 0.5}}}, ["head.rows.momentum"], []),
        ({"head": {"rows": {"momentum": 0}}}, ["head.rows.momentum"], ["head.rows.momentum"]),
        ({"train": {"optimizer": {"kind": "sgd", "momentum": 0.5}}}, ["train.optimizer.momentum"], []),
        ({"train": {"optimizer": {"kind": "sgd", "momentum": 0}}}, ["train.optimizer.momentum"], ["train.optimizer.momentum"]),
        ({"train": {"epochs": 3, "batch_size": 7}}, ["train.batch_size", "train.epochs"], []),
        ({"engine": {"zero_stage": 2}, "cluster": {"workers": 3}, "tracking": {"experiment": "x"}}, [], []),
        ({"evaluation": {"pairs": ["a"], "every_steps": 3}, "checkpoint": {"keep": 9}}, [], []),
    ],
)  # fmt: skip
def test_what_a_field_decides(
    tree: dict[str, Any], results: list[str], decides_tensors: list[str]
) -> None:
    assert differences(identity(make()), identity(make(**tree))) == results
    assert differences(tensors(make()), tensors(make(**tree))) == decides_tensors


def test_parts_of_a_mixture_decide_by_weight_not_by_place() -> None:
    def of(*weights: float, folder: str = "a") -> dict[str, Any]:
        parts = [{"path": f"{folder}{i}", "weight": w} for i, w in enumerate(weights)]
        return identity(make(data={"mixture": parts}))

    assert of(1, 2) == of(1, 2, folder="b")
    assert differences(of(1, 2), of(1, 3)) == ["data.mixture[1].weight"]
    assert differences(of(1, 2), of(1, 2, 3)) == ["data.mixture[2].weight"]


def test_a_head_that_is_not_there_decides_nothing() -> None:
    pk: dict[str, Any] = {"data": {"order": "pk"}}
    alone = make(objective="triplet", **pk)
    other = make(objective="triplet", head={"scale": 3, "margin": "cosface"}, **pk)
    assert identity(alone) == identity(other)
    assert not [key for key in identity(alone) if key.startswith("head.")]
    assert not [key for key in tensors(alone) if key.startswith("head.")]
    assert tensors(alone)["objective"] == "no state"
    both = make(objective={"kind": "sum", "of": ["margin_softmax", "triplet"]}, **pk)
    assert tensors(both)["objective"] == tensors(make(**pk))["objective"] == "head"
    assert "head.margin.kind" in identity(both)
    assert identity(both)["objective.of[1].kind"] == "triplet"


def test_a_file_of_ones_own_is_told_by_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Mine: pass\n")

    def of(path: Path) -> dict[str, Any]:
        margin = {"kind": "custom", "file": str(path), "name": "Mine"}
        return identity(make(head={"margin": margin}))

    before = of(file)
    assert before["head.margin.file_sha256"] == file_sha256(file)
    moved = tmp_path / "moved.py"
    moved.write_bytes(file.read_bytes())
    assert of(moved) == before, "where it lies decides nothing"
    file.write_text("class Mine: m = 1\n")
    assert differences(before, of(file)) == ["head.margin.file_sha256"]
    assert of(tmp_path / "gone.py")["head.margin.file_sha256"] == "no such file"


def test_protocols_of_ones_own_may_come_and_go_but_not_change(tmp_path: Path) -> None:
    def of(*names: str) -> dict[str, Any]:
        protocols = [
            {"kind": "custom", "file": str(tmp_path / f"{name}.py"), "name": "Mine"}
            for name in names
        ]
        return identity(make(evaluation={"protocols": protocols}))

    for name in "ab":
        (tmp_path / f"{name}.py").write_text(f"class Mine: {name} = 1\n")
    both = of("a", "b")
    assert differences(both, of()) == differences(of(), both) == []
    assert differences(both, of("b")) == differences(of("b", "a"), both) == []
    (tmp_path / "b.py").write_text("class Mine: b = 2\n")
    assert differences(both, of("b")) == ["evaluation.protocols[b.py].file_sha256"]
    custom = make(head={"margin": {"kind": "custom", "file": str(tmp_path / "a.py"), "name": "A"}})
    assert "head.margin.kind" in differences(identity(make()), identity(custom))
    assert "head.margin.file_sha256" not in differences(identity(make()), identity(custom))


@pytest.mark.parametrize("workers", [1, "auto", {"min": 1, "max": 2}, {"min": 2, "max": 8}])
def test_a_run_goes_on_with_any_number_of_workers(workers: Any) -> None:
    fixed, changed = (identity(make(cluster={"workers": each})) for each in (4, workers))
    assert differences(fixed, changed) == differences(changed, fixed) == []


def test_flatten_opens_lists_of_mappings() -> None:
    tree = {"a": [{"b": 1}, {"b": 2, "c": {"d": ()}}], "e": ({"f": [3, 4]},), "g": []}
    flat = {"a.0.b": 1, "a.1.b": 2, "a.1.c.d": (), "e.0.f": [3, 4], "g": []}
    assert flatten(tree) == flat


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {
        "a.b": 1,
        "a.c.d": [2],
        "e": None,
    }
