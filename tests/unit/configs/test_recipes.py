"""Each shipped recipe loads, can be planned, and opens with its command, time and result."""

import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from command_words import parsed

from manyfaces.configs.load import dump, load
from manyfaces.configs.margins.cosface import CosFace
from manyfaces.configs.plan import plan, world_size
from manyfaces.configs.reader import find
from manyfaces.configs.schema import AdamW

CONFIGS = Path(str(files("manyfaces.configs")))
RECIPES = sorted(CONFIGS.rglob("*.yaml"))


def test_the_recipes_are_found() -> None:
    names = {path.relative_to(CONFIGS).as_posix() for path in RECIPES}
    assert {
        "demo.yaml",
        "faces/small_cpu.yaml",
        "pretrain/ms1mv3_r50.yaml",
        "pretrain/glint360k_r100.yaml",
        "pretrain/wf42m_vit_base.yaml",
        "quick/quick.yaml",
        "quick/arcface.yaml",
    } <= names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_found_by_its_path_and_by_the_names_it_had(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inside = path.relative_to(CONFIGS).with_suffix("")
    had = {"faces/small_cpu": "faces_small_cpu", "quick/quick": "quick"}.get(
        str(inside), path.stem if inside.parts[0] == "pretrain" else "_".join(inside.parts)
    )
    for name in (inside, had):
        for asked in (f"{name}", f"{name}.yaml", f"configs/{name}", f"configs/{name}.yaml"):
            assert find(asked, Path()) == path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_plans_and_tells_how_to_run_it(path: Path, tmp_path: Path) -> None:
    told: list[str] = []
    config = load(path, tell=told.append)
    assert told == [], "an old spelling in a recipe of ours"
    found = plan(
        config,
        config.data.expect_images or 5000,
        config.data.expect_identities or 200,
        world_size(config),
    )
    assert found.num_steps > 0
    assert found.memory_bytes < 80 * 2**30  # of the GPUs that the recipes are written for
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(dump(config), encoding="utf-8")
    assert load(dumped) == config

    command, time, result, *_ = path.read_text(encoding="utf-8").splitlines()
    inside = path.relative_to(CONFIGS)
    assert command.startswith(f"# Command: manyfaces train configs/{inside}")
    assert time.startswith("# Time: ")
    assert result.startswith("# Result: ")
    name = "_".join(inside.with_suffix("").parts).removeprefix("pretrain_")
    assert config.run.name.replace("-", "_") == name.replace("quick_quick", "quick")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_commands_of_a_recipe_s_header_are_ones(path: Path) -> None:
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    spans = re.findall(r"`(manyfaces [^`]+)`", "\n".join(comments))
    lines = [re.sub(r"^#( Command:|  )? ", "", line) for line in comments]
    commands = [line for line in lines if line.startswith("manyfaces ")] + spans
    assert parsed(commands[0])["config"] == f"configs/{path.relative_to(CONFIGS)}"
    for command in commands[1:]:
        parsed(command)


def test_no_recipe_wants_what_convert_reads_to_be_unpacked() -> None:
    for path in RECIPES:
        assert not re.search(r"unpack_|record file unpacked", path.read_text()), path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_rows_under_sgd_do_not_take_the_numbers_of_adamw(path: Path) -> None:
    config = load(path)
    is_adamw = isinstance(config.train.optimizer, AdamW)
    if config.has_head and is_adamw and config.head.rows.optimizer == "sgd":
        assert config.head.rows.lr_scale * config.train.optimizer.lr >= 0.05
        assert config.head.rows.weight_decay is not None


def test_the_published_datasets() -> None:
    sizes = {
        name: (load(name).data.expect_images, load(name).data.expect_identities)
        for name in ("ms1mv3_r50", "glint360k_r100", "wf42m_vit_base")
    }
    assert sizes == {
        "ms1mv3_r50": (5179510, 93431),
        "glint360k_r100": (17091657, 360232),
        "wf42m_vit_base": (42474557, 2059906),
    }


def test_glint360k_is_cosface_on_its_base() -> None:
    config = load("glint360k_r100")
    assert config.head.margin == CosFace(m=0.4)
    assert config.train.optimizer.weight_decay == 1e-4
    assert (config.train.batch_size, config.model.embedding_dim, config.head.wire_dtype) == (
        1024,
        512,
        "bfloat16",
    )


def test_the_recipes_are_in_the_wheel() -> None:
    root = Path(__file__).resolve().parents[3]
    setup = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    packed = {path for glob in setup["package-data"]["*"] for path in CONFIGS.glob(glob)}
    assert set(RECIPES) <= packed
