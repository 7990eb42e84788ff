"""What is kept of a run's checkpoints: the newest, the periodic and the best by a metric, compared
with the rules written out one by one; `RUN@best` names the best."""

import json
import math
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_head import made_head, write_checkpoint

from manyfaces.configs.errors import UserError
from manyfaces.configs.sections.checkpoint import Best, Checkpoint
from manyfaces.train.checkpoint import retention
from manyfaces.train.checkpoint.choice import chosen, names_checkpoint
from manyfaces.train.checkpoint.commit import Condition, Fault
from manyfaces.train.checkpoint.layout import Candidate, folder_name
from manyfaces.train.checkpoint.overview import listed
from manyfaces.train.checkpoint.retention import Retention, read_scores, verdicts
from manyfaces.train.cli.main import main
from manyfaces.train.initial_weights import trained_file

METRIC = "lfw/accuracy"
BEST = Best(metric=METRIC)


def kept_by_the_rules(
    conditions: Mapping[int, str],
    scores: Mapping[int, float],
    trusted: Collection[int],
    keep: int,
    every: int | None,
    best: Best | None,
) -> set[int]:
    """The steps that are kept, one rule after the other."""
    whole = [step for step in sorted(conditions, reverse=True) if conditions[step] == "whole"]
    order = [s for s in whole if s in trusted] + [s for s in whole if s not in trusted]
    kept = set(order[:keep])
    if every is not None:
        kept |= {s for s, how in conditions.items() if s % every == 0 and how != "torn"}
    if best is not None:
        for step in conditions:
            better = [
                other
                for other in whole
                if other in scores
                and step in scores
                and (
                    (
                        scores[other] > scores[step]
                        if best.mode == "max"
                        else scores[other] < scores[step]
                    )
                    or (scores[other] == scores[step] and other < step)
                )
            ]
            if step in scores and len(better) < best.keep and conditions[step] != "torn":
                kept.add(step)
    return kept


FAULTS = {
    "whole": None,
    "torn": Fault(Condition.UNCOMMITTED, "not committed"),
    "damaged": Fault(Condition.DAMAGED, "backbone.safetensors: missing"),
}
STEPS = st.integers(1, 12)


@settings(max_examples=300, deadline=None)
@given(
    conditions=st.dictionaries(STEPS, st.sampled_from([*FAULTS, "whole"])),
    scores=st.dictionaries(STEPS, st.sampled_from([0.1, 0.5, 0.9])),
    trusted=st.sets(STEPS),
    keep=st.integers(1, 3),
    every=st.none() | st.integers(1, 5),
    mode=st.sampled_from(["max", "min"]),
    keep_best=st.integers(0, 3),
)
def test_what_is_kept_is_what_the_rules_say(
    conditions, scores, trusted, keep, every, mode, keep_best
) -> None:
    best = Best(metric=METRIC, mode=mode, keep=keep_best) if keep_best else None
    config = Checkpoint(every_steps=1, keep=keep, keep_every_steps=every, best=best)
    found = [
        Candidate(Path(folder_name(step)), step, FAULTS[conditions[step]])
        for step in sorted(conditions, reverse=True)
    ]
    told = verdicts(found, config, scores, [Path(folder_name(step)) for step in trusted])
    expected = kept_by_the_rules(conditions, scores, trusted, keep, every, best)
    assert {each.checkpoint.step for each in told if each.reasons} == expected


def run_of(folder: Path, scores: Mapping[int, float | None], **section: object) -> Path:
    """A run with whole checkpoints of these steps, evaluated to these values."""
    (folder / "checkpoints").mkdir(parents=True)
    made = write_checkpoint(folder / "made", ["anna", "bob"], made_head(2, 1))
    for step in scores:
        shutil.copytree(made, folder / "checkpoints" / folder_name(step))
    shutil.rmtree(made)
    rows = [
        {"step": step, "time": 0, "train/loss": 1.0} | ({} if score is None else {METRIC: score})
        for step, score in scores.items()
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(json.dumps({"checkpoint": section}))
    return folder


def steps_of(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").iterdir())


SCORES = {10: 0.7, 20: 0.9, 30: 0.9, 40: None, 50: math.nan, 60: 0.8}


def test_one_line_tells_what_is_kept_and_what_was_removed(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", SCORES)
    config = Checkpoint(every_steps=10, keep=1, keep_every_steps=50, best=BEST)
    told = Retention(run / "checkpoints", config).apply([run / "checkpoints" / folder_name(60)])
    assert told == (
        "kept: newest step-00000060, best by lfw/accuracy step-00000020 (0.9), 1 of every 50 "
        "steps; removed step-00000040 (lfw/accuracy not known), step-00000030 (lfw/accuracy "
        "0.9), step-00000010 (lfw/accuracy 0.7)"
    )
    assert steps_of(run) == [20, 50, 60]
    assert Retention(run / "checkpoints", config).apply(()) is None


def test_a_removal_that_fails_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path / "run", {10: 0.1, 20: 0.2, 30: 0.3})
    remove = shutil.rmtree

    def refuse_the_first(path: Path) -> None:
        if path.name == folder_name(10):
            raise OSError(30, "Read-only file system")
        remove(path)

    monkeypatch.setattr(retention.shutil, "rmtree", refuse_the_first)
    kept = Retention(run / "checkpoints", Checkpoint(keep=1))
    assert kept.apply(()) == (
        "kept: newest step-00000030; removed step-00000020; could not remove step-00000010 "
        "(Read-only file system): training goes on, see to the disk"
    )
    assert kept.apply(()) is None
    assert steps_of(run) == [10, 30]


def test_a_damaged_best_stays_beside_the_one_in_its_place(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", {10: 0.1, 20: 0.9, 30: 0.8, 40: 0.2, 50: 0.3})
    (run / "checkpoints" / folder_name(20) / "backbone.safetensors").unlink()
    (run / "checkpoints" / folder_name(40) / "backbone.safetensors").unlink()
    config = Checkpoint(every_steps=10, keep=1, best=BEST)
    told = Retention(run / "checkpoints", config).apply([run / "checkpoints" / folder_name(50)])
    assert steps_of(run) == [20, 30, 50]
    assert told is not None
    assert "removed step-00000040 (backbone.safetensors: missing" in told


def test_a_run_names_its_best(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", SCORES, every_steps=10, best={"metric": METRIC})
    best = run / "checkpoints" / folder_name(20)
    for path in (tmp_path / "run@best", run / "@best"):
        assert names_checkpoint(path)
        assert chosen(path) == best
        assert trained_file(str(path)) == best / "backbone.safetensors"
    (best / "backbone.safetensors").unlink()
    assert chosen(tmp_path / "run@best").name == folder_name(30)
    assert read_scores(run, BEST) == {10: 0.7, 20: 0.9, 30: 0.9, 60: 0.8}
    (tmp_path / "run@best").mkdir()
    with pytest.raises(UserError, match="no run there"):
        chosen(tmp_path / "run@best")


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({}, "sets no checkpoint.best, so none of its checkpoints is the best; `manyfaces"),
        ({"best": {"metric": "cfp/auc"}}, "no whole checkpoint of it was evaluated by cfp/auc"),
    ],
)
def test_a_run_without_a_best_is_one_line(tmp_path: Path, section, told) -> None:
    run = run_of(tmp_path / "run", {10: 0.1}, **section)
    with pytest.raises(UserError, match=told):
        chosen(Path(f"{run}@best"))
    (run / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"config\.yaml is missing or cannot be read, so nothing"):
        chosen(Path(f"{run}@best"))


def test_a_table_tells_why_each_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section = {"every_steps": 10, "keep": 2, "keep_every_steps": 20, "best": {"metric": METRIC}}
    run = run_of(tmp_path / "run", SCORES, **section)
    found = {each.step: each for each in listed(run)}
    assert found[60].kept == "newest, every 20 steps"
    assert found[50].kept == "newest"
    assert found[20].kept == "best by lfw/accuracy, every 20 steps"
    assert found[10].kept == "until the next is written"
    assert found[20].headlines == {METRIC: 0.9}
    assert found[40].headlines == {}
    assert main(["checkpoint", "show", str(run)]) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in ("kept", "evaluation", folder_name(60)))
    assert main(["checkpoint", "show", f"{run}@best"]) == 0
    assert "train/loss" in capsys.readouterr().out
