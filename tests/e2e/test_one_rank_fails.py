"""What fails on one rank alone while a run is being built ends the run on all ranks, with that
rank's words, within seconds."""

import time
import warnings
from pathlib import Path

import pytest
import torch.distributed as dist
from commands import recipe, rows
from launcher import run_ranks

from manyfaces.configs.load import load
from manyfaces.data.feed import loader
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
