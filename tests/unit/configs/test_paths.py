"""Relative paths become absolute by one rule, wherever they stand."""

from pathlib import Path
from typing import Any

import pytest

from manyfaces.configs.errors import UserError
from manyfaces.configs.identity import flatten
from manyfaces.configs.load import load
from manyfaces.configs.paths import absolute
from manyfaces.configs.schema import Config

CUSTOM = {"kind": "custom", "file": "mine.py", "name": "X"}
TREE: dict[str, Any] = {
    "run": {"dir": "runs", "resume_from": "old"},
    "data": {
        "cache_dir": "cache",
        "mixture": [{"path": "a"}, {"path": "s3://bucket/b"}, {"path": "~/c"}],
        "augment": ["flip", CUSTOM],
        "order": "pk",
    },
    "model": {"kind": "iresnet", "init": "weights.pth"},
    "objective": {"kind": "sum", "of": ["margin_softmax", {"kind": "sum", "of": [CUSTOM, CUSTOM]}]},
    "head": {"margin": CUSTOM},
    "evaluation": {
        "pairs": ["a.bin", "/faces/b.bin"],
        "protocols": [{"kind": "verification", "path": "c.bin"}, CUSTOM],
    },
}


def test_every_path_becomes_absolute_and_nothing_else_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    config = Config.model_validate(TREE)
    here = absolute(config)
    data, evaluation = here.data, here.evaluation
    assert (here.run.dir, here.run.resume_from) == (f"{tmp_path}/runs", f"{tmp_path}/old")
    assert data.cache_dir == f"{tmp_path}/cache"
    assert data.paths == (f"{tmp_path}/a", "s3://bucket/b", "/home/me/c")
    assert here.model.init == f"{tmp_path}/weights.pth"
    assert evaluation.pairs == (f"{tmp_path}/a.bin", "/faces/b.bin")
    text = str(here.model_dump(mode="json"))
    assert text.count(f"{tmp_path}/mine.py") == text.count("mine.py") == 5
    assert f"{tmp_path}/c.bin" in text
    assert absolute(here) == here == Config.model_validate(here.model_dump(mode="json"))
    # The rest stays as it was.
    before, after = flatten(config.model_dump()), flatten(here.model_dump())
    assert {key for key in before if before[key] != after[key]} == {
        "run.dir", "run.resume_from", "data.cache_dir", "data.mixture.0.path",
        "data.mixture.2.path",
        "data.augment.1.file", "model.init", "objective.of.1.of.0.file", "objective.of.1.of.1.file",
        "head.margin.file", "evaluation.pairs", "evaluation.protocols.0.path",
        "evaluation.protocols.1.file",
    }  # fmt: skip


def test_what_is_not_set_stays_so() -> None:
    config = Config.model_validate({"model": "iresnet", "run": {"dir": "/runs"}})
    here = absolute(config)
    assert here == config
    assert (here.data.path, here.model.init, here.run.resume_from) == ("", None, None)
    assert here.data.cache_dir.startswith("~")


@pytest.mark.parametrize("path", ["~/runs", "~"])
def test_home_is_that_of_who_launches(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    tree: dict[str, Any] = {
        "run": {"dir": path, "resume_from": path},
        "model": {"kind": "vit", "init": "~/w.pth"},
        "evaluation": {"pairs": [path]},
    }
    here = absolute(Config.model_validate(tree))
    expanded = path.replace("~", "/home/me")
    assert (here.run.dir, here.run.resume_from) == (expanded, expanded)
    assert here.evaluation.pairs == (expanded,)
    # A part of the run's identity stays as it is written, and each node keeps its cache at home.
    assert (here.model.init, here.data.cache_dir) == ("~/w.pth", "~/.cache/manyfaces")


def test_the_home_of_nobody_is_refused() -> None:
    config = Config.model_validate({"run": {"dir": "~no-such-person/runs"}, "model": "vit"})
    with pytest.raises(UserError, match=r"^~no-such-person/runs: there is no such home"):
        absolute(config)


@pytest.mark.parametrize("key", ["run.work_dir", "data.cache_dir"])
def test_a_url_is_no_folder(key: str) -> None:
    with pytest.raises(UserError, match=rf"{key}: 's3://bucket/runs' is a URL; give a folder"):
        load("demo", [f"{key}=s3://bucket/runs"])
