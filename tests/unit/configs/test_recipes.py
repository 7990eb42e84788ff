"""Each shipped recipe loads, can be planned, and opens with its command, time and result."""

from importlib.resources import files
from pathlib import Path

import pytest

from manyfaces.configs.load import dump, load
from manyfaces.configs.plan import plan, world_size
from manyfaces.configs.schema import AdamW

RECIPES = sorted(Path(str(files("manyfaces.configs"))).glob("*.yaml"))


def test_the_recipes_are_found() -> None:
    assert {"demo", "faces_small_cpu", "ms1mv3_r50", "glint360k_r100", "wf42m_vit_base"} <= {
        path.stem for path in RECIPES
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_plans_and_tells_how_to_run_it(path: Path, tmp_path: Path) -> None:
    config = load(path)
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
    assert command.startswith(f"# Command: manyfaces train configs/{path.name}")
    assert time.startswith("# Time: ")
    assert result.startswith("# Result: ")
    assert config.run.name.replace("-", "_") == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_rows_under_sgd_do_not_take_the_numbers_of_adamw(path: Path) -> None:
    config = load(path)
    if isinstance(config.train.optimizer, AdamW):
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
    assert config.head.margin.kind == "cosface"
    assert config.train.optimizer.weight_decay == 1e-4
    assert (config.train.batch_size, config.model.embedding_dim, config.head.wire_dtype) == (
        1024,
        512,
        "bfloat16",
    )
