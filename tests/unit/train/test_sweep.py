"""A sweep before and after its trials: which words are axes, that each mistake is one line, what a
trial tells of its record, and the table."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from manyfaces.configs.load import load
from manyfaces.configs.schema import Config, UserError
from manyfaces.data.dataset.dataset import open_part
from manyfaces.data.dataset.draw_pairs import draw_pairs
from manyfaces.data.sources.verification_bin import write_bin
from manyfaces.train.cli.main import main
from manyfaces.train.record import Record
from manyfaces.train.sweep.grid import Axis, axes_of, trials_of
from manyfaces.train.sweep.outcome import outcomes, plot, table
from manyfaces.train.sweep.sweep import LOSS, Asked, Planned, planned
from manyfaces.train.sweep.trial import TrialProcess

MARGINS = "head.margin.m=[0.3,0.40]"


def test_lists_are_axes_with_their_values_as_written() -> None:
    words = [MARGINS, "train.epochs=2", "data.image_px=[[112, 96], 64]", "run.name='[a]'"]
    axes, plain = axes_of(words)
    assert axes == [
        Axis("head.margin.m", ("0.3", "0.40")),
        Axis("data.image_px", ("[112, 96]", "64")),
    ]
    assert plain == ["train.epochs=2", "run.name='[a]'"]


def test_each_combination_is_a_run_of_its_own() -> None:
    axes, plain = axes_of([MARGINS, "train.optimizer.lr=[1e-3, 0.1]", "run.name=tried"])
    trials = trials_of("quick/arcface", axes, plain, print)
    assert [trial.name for trial in trials] == [f"tried-{n:03d}" for n in range(4)]
    found = [
        (t.config.model_dump()["head"]["margin"]["m"], t.config.train.optimizer.lr) for t in trials
    ]
    assert found == [(0.3, 0.001), (0.3, 0.1), (0.4, 0.001), (0.4, 0.1)]
    assert trials[1].values == ("0.3", "0.1")


@pytest.fixture
def mistake(
    dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Types `manyfaces sweep` with these words, and gives the line that is told."""

    def told(*words: str, metric: str = LOSS) -> str:
        own = [f"data.path={dataset_path}", f"run.dir={tmp_path / 'runs'}", "run.name=tried"]
        assert main(["sweep", "quick/arcface", *own, *words, "--metric", metric]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        [line] = err.splitlines()
        assert not (tmp_path / "runs").exists()
        return line.removeprefix("error: ")

    return told


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "no word has a list of values; give at least one, as 'head.margin.m=[0.3,0.4]'"),
        (["head.margin.m=[]"], "the list of values is empty"),
        (["head.margin.m=[0.3,0.3]"], "has the same value twice"),
        ([MARGINS, MARGINS], "head.margin.m is an axis already"),
        (["run.name=[a,b]"], "run.name is no axis: each trial has a name of its own"),
        (["head.margn.m=[0.3,0.4]"], "head.margn"),
        (["head.margin.m=[0.3,-7]"], "head.margin.m"),
        ([f"run.seed=[{','.join(map(str, range(1001)))}]"], "1,001 trials; at most 1,000"),
        ([MARGINS, "data.path=/nowhere"], "the plan needs the dataset's size"),
        ([MARGINS, "run.dir=s3://bucket/runs"], "a sweep compares runs in a folder"),
        ([MARGINS, "--address", "http://h:8265"], "joins the cluster from one of its nodes"),
        ([MARGINS, "--grace-epochs", "1000"], "--grace-epochs 1000 is more than train.epochs"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(
    mistake: Callable[..., str], words: list[str], line: str
) -> None:
    assert line in mistake(*words)


def test_a_metric_that_no_run_records(
    mistake: Callable[..., str], dataset_path: Path, tmp_path: Path
) -> None:
    told = mistake(MARGINS, metric="lfw/accuracy")
    assert told.startswith("--metric lfw/accuracy: tried-000 will not record it; ")
    assert "evaluation.pairs and evaluation.protocols name none" in told
    pairs = tmp_path / "lfw.bin"
    write_pairs(dataset_path, pairs)
    told = mistake(MARGINS, f"evaluation.pairs=[[{pairs}]]", metric="lfw/acuracy")
    assert "did you mean lfw/accuracy? the metrics are lfw/" in told


def write_pairs(dataset: Path, pairs: Path) -> None:
    write_bin(pairs, *draw_pairs(open_part(dataset), 20, 0))


def asked(dataset: Path, folder: Path, *words: str, **changes: Any) -> Asked:
    own = (f"data.path={dataset}", f"run.dir={folder}", "run.name=tried", "train.batch_size=16")
    facts: dict[str, Any] = {
        "recipe": "quick/arcface",
        "words": (*own, *words),
        "metric": LOSS,
        "mode": "min",
        "concurrent": None,
        "grace_epochs": None,
        "stops_early": True,
        "address": None,
    }
    return Asked(**facts | changes)


def test_trials_are_evaluated_while_they_train(dataset_path: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "lfw.bin"
    write_pairs(dataset_path, pairs)
    words, told = (MARGINS, f"evaluation.pairs=[[{pairs}]]"), list[str]()
    what = planned(asked(dataset_path, tmp_path, *words, metric="lfw/accuracy"), told.append)
    assert [trial.config.evaluation.every_steps for trial in what.trials] == [8, 8]
    [line] = told
    assert line.startswith("evaluation.every_steps=8, an epoch: ")
    assert what.early_stop is not None
    assert what.early_stop.grace_epochs == pytest.approx(what.trials[0].config.train.epochs / 9)
    late = asked(dataset_path, tmp_path, *words, metric="lfw/accuracy", stops_early=False)
    what = planned(late, told.append)
    assert [trial.config.evaluation.every_steps for trial in what.trials] == [0, 0]
    assert what.early_stop is None


def trial_config(folder: Path) -> Config:
    return load("quick/arcface", [f"run.dir={folder}", "run.name=tried-000"])


def payload(folder: Path, **changes: Any) -> dict[str, Any]:
    facts = {
        "config": trial_config(folder).model_dump(mode="json"),
        "num_steps": 40,
        "epochs": 4.0,
        "metric": "lfw/accuracy",
        "log": str(folder / "log"),
        "is_stopped": False,
    }
    return facts | changes


def test_what_is_recorded_is_told_without_a_process(tmp_path: Path) -> None:
    record = Record(tmp_path / "tried-000")
    for step in (10, 20, 40):
        record.metrics(step, **{"lfw/accuracy": step / 100})
        record.metrics(step, **{"train/loss": 1.0})
    record.event("finished", "finished at step 40", step=40)
    finished = TrialProcess(payload(tmp_path))
    assert [finished.poll() for _ in range(4)] == [
        {"epoch": 1.0, "lfw/accuracy": 0.1},
        {"epoch": 2.0, "lfw/accuracy": 0.2},
        {"epoch": 4.0, "lfw/accuracy": 0.4},
        {"done": True, "ended": True, "fault": ""},
    ]
    finished.stop()


def test_a_trial_that_had_fallen_behind_is_not_gone_on_with(tmp_path: Path) -> None:
    Record(tmp_path / "tried-000").metrics(10, **{"lfw/accuracy": 0.5})
    behind = TrialProcess(payload(tmp_path, is_stopped=True))
    assert behind.poll() == {"epoch": 1.0, "lfw/accuracy": 0.5}
    assert behind.poll()["done"]


def test_the_table_has_the_best_first(dataset_path: Path, tmp_path: Path) -> None:
    words = ("head.margin.m=[0.3,0.4,0.5]", "train.epochs=4")
    what = planned(asked(dataset_path, tmp_path, *words), print)
    assert what.num_steps == (30, 30, 30)
    for name, losses in (
        ("tried-000", (5.0, 4.0)),
        ("tried-001", (6.0,)),
        ("tried-002", (3.0, 3.5)),
    ):
        record = Record(tmp_path / name)
        for number, loss in enumerate(losses, 1):
            record.metrics(15 * number, **{LOSS: loss})
    Record(tmp_path / "tried-002").event("finished", "finished", step=30)
    ran = Planned(
        **{**vars(what), "fallen_behind": ("tried-001",), "faults": {"tried-000": "lost"}}
    )
    found = outcomes(ran)
    assert [(each.trial.name, each.best, each.state) for each in found] == [
        ("tried-002", 3.0, "finished"),
        ("tried-000", 4.0, "failed: lost"),
        ("tried-001", 6.0, "stopped early"),
    ]
    assert found[0].values == ((2.0, 3.0), (4.0, 3.5))
    assert [each.is_failed for each in found] == [False, True, False]
    console = Console(width=120)
    with console.capture() as shown:
        console.print(table(ran, found))
    assert "tried-000 │ 0.3           │ 4          │ 4 epochs │ failed: lost" in shown.get()
    what.folder.mkdir()
    assert plot(ran, found).read_bytes().startswith(b"\x89PNG")


def test_another_sweep_of_the_same_name_is_refused(dataset_path: Path, tmp_path: Path) -> None:
    what = planned(asked(dataset_path, tmp_path, MARGINS), print)
    state = {"axes": {"head.margin.m": ["0.3", "0.40"]}, "metric": LOSS, "mode": "min"}
    what.folder.mkdir()
    (what.folder / "sweep.json").write_text(json.dumps(state | {"fallen_behind": ["tried-001"]}))
    assert planned(asked(dataset_path, tmp_path, MARGINS), print).fallen_behind == ("tried-001",)
    with pytest.raises(UserError, match=r"was a sweep of head\.margin\.m=\[0\.3, 0\.40\]; give"):
        planned(asked(dataset_path, tmp_path, "head.margin.m=[0.3]"), print)
