"""`state.json` is typed and versioned: what an older version wrote is lifted, what this one does
not know is one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_head import write_commit

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Config
from manyfaces.train.checkpoint.state import FORMAT, RunState, read_state
from manyfaces.train.left_out import LeftOut

STATE = RunState(
    Config(model=MobileFaceNet(scale=1)),
    "fingerprint",
    num_classes=7,
    seed=3,
    step=2,
    position=20,
    seconds=1.5,
    numbers={"head": {"norm_mean": 20.5}},
    versions={"torch": "2"},
)


def written(folder: Path, tree: dict[str, Any]) -> Path:
    return committed(folder, json.dumps(tree))


def committed(folder: Path, state: str) -> Path:
    (folder / "state.json").write_text(state)
    return write_commit(folder)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    left_out = LeftOut(position=4, step=2, reason="loss nan", samples=[7, 1], names=["a", "b"])
    for state in (
        STATE,
        STATE.at(edited={"verb": "add"}, mlflow={"run_id": "r"}),
        STATE.at(left_out=(left_out,)),
    ):
        assert RunState.read(committed(tmp_path, state.to_json())) == state


def test_format_1_is_lifted(tmp_path: Path) -> None:
    tree = json.loads(STATE.to_json())
    old = {**tree, "format": 1, "head": tree["numbers"]["head"]}
    del old["numbers"]
    assert RunState.read(written(tmp_path, old)) == STATE
    assert read_state(tmp_path)["format"] == FORMAT


def test_old_spellings_in_the_configuration_are_lifted(tmp_path: Path) -> None:
    tree = json.loads(STATE.to_json())
    tree["config"]["data"] |= {"order": "pk", "images_per_identity": 2, "window_shards": 9}
    tree["config"]["head"] |= {"margin": {"kind": "none"}, "triplet": {"margin": 0.25}}
    del tree["config"]["objective"]
    config = RunState.read(written(tmp_path, tree)).config
    assert config.data.order.model_dump() == {"kind": "pk", "images_per_identity": 2}
    assert config.objective.word() == "triplet"
    assert config.objective.margin == 0.25  # type: ignore[attr-defined]


def test_a_field_that_came_later_has_its_default(tmp_path: Path) -> None:
    tree = json.loads(STATE.to_json())
    del tree["config"]["train"]["clip_norm"], tree["config"]["evaluation"], tree["versions"]
    assert RunState.read(written(tmp_path, tree)) == STATE.at(versions={})


@pytest.mark.parametrize("field", ["config", "dataset", "num_classes", "seed", "step", "position"])
def test_a_field_that_is_missing_is_one_line(field: str, tmp_path: Path) -> None:
    tree = json.loads(STATE.to_json())
    del tree[field]
    with pytest.raises(UserError, match=rf"state\.json: {field} is missing; use another check"):
        RunState.read(written(tmp_path, tree))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99, and this version of manyfaces reads up to"),
        ({"format": "x"}, "cannot be read"),
        ({"tomorrow": 1}, "unknown key tomorrow"),
        ({"config": {"model": {"kind": "mobilefacenet", "tomorrow": 1}}}, "model.tomorrow"),
        ({"config": {"model": {"kind": "from_tomorrow"}}}, "model.kind"),
    ],
)
def test_what_is_not_known_is_one_line(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tree = json.loads(STATE.to_json()) | change
    with pytest.raises(UserError) as told:
        RunState.read(written(tmp_path, tree))
    assert message in str(told.value)
    assert "state.json" in str(told.value)
    assert "\n" not in str(told.value)
