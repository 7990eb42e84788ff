"""What fails on one rank alone while a run is being built ends the run on all ranks, with that
rank's words, within seconds; so do files that are others than the launching process saw."""

import shutil
import time
import warnings
from pathlib import Path

import pytest
import torch.distributed as dist
from commands import recipe, rows
from launcher import run_ranks

from manyfaces.configs.load import load
from manyfaces.data.dataset.dataset import open_data
from manyfaces.data.feed import loader
from manyfaces.data.synthetic.dataset import synthesise
from manyfaces.train.folder import RunFolder
from manyfaces.train.run_identity import identity_here, write_identity
from manyfaces.train.session import work

FAST_S = 20
"""Far below the step's watchdog, which would end a rank that waits for another."""

OBJECTIVE = """
import torch.distributed as dist
from manyfaces.train.objectives.margin_softmax import MarginSoftmax

class Fails(MarginSoftmax):
    def network(self, backbone):
        if dist.get_rank() == 1:
            raise ValueError("nothing here")
        return backbone
"""


def build_objective(config_path: str) -> float:
    return _worked(config_path)


def build_loader(config_path: str) -> float:
    real = loader.Loader.__init__

    def init(self: loader.Loader, *args: object, **more: object) -> None:
        if dist.get_rank() == 1:
            raise OSError("too many open files")
        real(self, *args, **more)  # type: ignore[arg-type]

    loader.Loader.__init__ = init  # type: ignore[method-assign]
    return _worked(config_path)


def _worked(config_path: str) -> float:
    # DeepSpeed and what it imports warn of torch and of themselves.
    warnings.simplefilter("default")
    began = time.monotonic()
    work({"name": "run", "config": load(config_path, []).model_dump(mode="json")})
    return time.monotonic() - began


def test_data_that_were_written_anew_since_the_launch_are_told(
    dataset_path: Path, tmp_path: Path
) -> None:
    dataset = shutil.copytree(dataset_path, tmp_path / "dataset")
    path = recipe(tmp_path, dataset)
    config = load(str(path), [])
    folder = RunFolder.of(config)
    folder.path.mkdir(parents=True)
    write_identity(folder, config, identity_here(config, open_data(config.data)))
    shutil.rmtree(dataset)
    synthesise(dataset, 20, 6, seed=8, processes=1, shard_images=32)
    run_ranks(2, _worked, str(path))
    (event,) = rows(folder.path / "events.jsonl")
    assert event["kind"] == "stopped"
    assert "data.fingerprint" in event["message"]
    assert "written anew since the run was started" in event["message"]


@pytest.mark.parametrize(
    ("fails", "words"),
    [(build_objective, "nothing here"), (build_loader, "too many open files")],
)
def test_all_ranks_stop(fails, words: str, dataset_path: Path, tmp_path: Path) -> None:
    sections = {}
    if fails is build_objective:
        (tmp_path / "fails.py").write_text(OBJECTIVE)
        sections["objective"] = {
            "kind": "custom",
            "file": str(tmp_path / "fails.py"),
            "name": "Fails",
            "parameters": {"weight": 1.0, "branch": "main"},
        }
    config = recipe(tmp_path, dataset_path, **sections)
    if fails is build_objective:
        text = config.read_text()
        config.write_text(text[: text.index("head:")] + text[text.index("model:") :])
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    took = run_ranks(2, fails, str(config))
    assert max(took) < FAST_S
    events = [(row["kind"], row["message"]) for row in rows(run / "events.jsonl")]
    assert events[-1][0] == "stopped"
    assert events[-1][1].startswith("rank 1: ")
    assert events[-1][1].endswith(words)
