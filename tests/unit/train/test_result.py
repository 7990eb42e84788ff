"""A result as each of its readers shows or keeps it, whatever its protocol."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from manyfaces.configs.errors import UserError
from manyfaces.train import follow
from manyfaces.train.evaluation.plots import plot_metrics
from manyfaces.train.evaluation.report import (
    draw_report,
    read_report,
    report_folders,
    save_report,
)
from manyfaces.train.evaluation.result import Curve, Example, Histogram, Quantity, Result
from manyfaces.train.evaluation.tables import detail_tables, headlines, results_tables, summary_rows
from manyfaces.train.follow import Follower, summary_table
from manyfaces.train.heartbeat import FOLDER
from manyfaces.train.protocols.verification import Verification
from manyfaces.train.record import Record, read_rows

JPEG, PNG = b"\xff\xd8 a JPEG", b"\x89PNG a PNG"
RANKS = (
    Quantity("rank_1", "rank-1 hits", "rank 1"),
    Quantity("rank_5", "rank-5 hits"),
    Quantity("map", "mean AP", "mAP", ".3f", unknown="no gallery"),
)


def identification(name: str = "gallery", **scalars: float | None) -> Result:
    line = np.linspace(0, 1, 5)
    return Result(
        name,
        RANKS,
        {"rank_1": 0.5, "rank_5": 0.75, "map": 0.25} | scalars,
        counts={"probes": 1200},
        deviations={"map": 0.125},
        intervals={"rank_1": (0.4, 0.6)},
        curves={
            "cmc": Curve(
                "CMC", "rank", "hits", line + 1, line, log_x=True, low=line / 2, high=line * 2,
                lines={"old": (line + 1, line / 3)},
            )
        },
        histograms={"ranks": Histogram("ranks", "rank", "probes", {"mated": line}, mark=0.5)},
        tables={"groups": {"old": {"rank_1": 0.25}, "young": {"rank_1": None}}},
        examples={"worst probes": [Example((JPEG, np.frombuffer(PNG, np.uint8)), "Ann", 0.25)]},
    )  # fmt: skip


def verification(name: str = "pairs", **scalars: float | None) -> Result:
    """As 2,000 pairs give it: figures of `make demo`."""
    known: dict[str, float | None] = {each.name: None for each in Verification.quantities}
    known |= {"accuracy": 0.893, "best_accuracy": 0.902, "auc": 0.962}
    known |= {"tar_at_far_1e-01": 0.9, "tar_at_far_1e-02": 0.51, "tar_at_far_1e-03": 0.345}
    known |= scalars
    return Result(
        name,
        Verification.quantities,
        known,
        counts={"pairs": 2000},
        deviations={"accuracy": 0.0212},
    )


def shown(table: object) -> str:
    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(table)
    console.file.close()
    return console.export_text()


def cells(table: object) -> list[list[str]]:
    lines = [line for line in shown(table).splitlines() if "│" in line or "┃" in line]
    return [
        [cell.strip() for cell in line.strip("│┃ ").replace("┃", "│").split("│")] for line in lines
    ]


def test_metrics_are_what_is_known_under_the_names_of_ever() -> None:
    assert verification().metrics() == {
        "pairs/accuracy": 0.893,
        "pairs/best_accuracy": 0.902,
        "pairs/auc": 0.962,
        "pairs/tar_at_far_1e-01": 0.9,
        "pairs/tar_at_far_1e-02": 0.51,
        "pairs/tar_at_far_1e-03": 0.345,
    }
    assert identification(map=None).metrics() == {"gallery/rank_1": 0.5, "gallery/rank_5": 0.75}


def test_the_last_table_of_a_run_is_to_the_letter_that_of_before(tmp_path: Path) -> None:
    record, result = Record(tmp_path), verification()
    record.metrics(282, **{"train/loss": 7.599, "images_per_s": 336.4}, minutes=3.5)
    record.metrics(282, **result.metrics(), minutes=3.5)
    quantities = {"pairs": result.quantities, "not-evaluated": RANKS}
    table = summary_table(read_rows(tmp_path / "metrics.jsonl"), quantities, 249.0)
    assert cells(table) == [
        ["steps", "282"],
        ["images/s (median)", "336"],
        ["loss", "7.599"],
        ["pairs: accuracy (10-fold)", "89.30%"],
        ["pairs: accuracy (best threshold)", "90.20%"],
        ["pairs: AUC", "0.9620"],
        ["pairs: TAR at FAR 1e-2, not above", "51.00%"],
        ["pairs: TAR at FAR 1e-3, not above", "34.50%"],
        ["training time", "3.5 min"],
        ["wall time of this command", "4.2 min"],
    ]
    few = verification(**{"tar_at_far_1e-03": None}).metrics()
    assert summary_rows(quantities, few)[-1] == (
        "pairs: TAR at FAR 1e-3, not above",
        "too few pairs to tell",
    )
    other = identification(map=None)
    assert summary_rows({"gallery": RANKS}, other.metrics()) == [
        ("gallery: rank-1 hits", "50.00%"),
        ("gallery: mean AP", "no gallery"),
    ]


def test_the_progress_line_has_the_headlines(tmp_path: Path) -> None:
    results = (verification(), identification())
    quantities = {result.name: result.quantities for result in results}
    assert headlines(quantities, results[1].metrics()) == "gallery 50.0%"
    console = Console(width=150, record=True, file=(tmp_path / "shown").open("w"))
    record = Record(tmp_path)
    with Follower(tmp_path, 20, console, quantities):
        for result in results:
            record.metrics(10, **result.metrics())
        record.metrics(20, **{"train/loss": 7.5, "images_per_s": 336.0})
    console.file.close()
    line = "step 20/20  loss 7.500  336 images/s  pairs 89.3% gallery 50.0%"
    assert console.export_text().splitlines() == [line]


def test_without_a_terminal_the_line_has_all_that_the_progress_bar_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "PLAIN_PERIOD_S", 0.0)
    monkeypatch.setattr(follow, "PERIOD_S", 0.02)
    console = Console(width=150, record=True, file=(tmp_path / "shown").open("w"))
    record = Record(tmp_path)
    for rank, node in enumerate(("a", "a", "b")):
        beat = json.dumps({"rank": rank, "node": node})
        (tmp_path / FOLDER).mkdir(exist_ok=True)
        (tmp_path / FOLDER / f"{rank}.json").write_text(beat)
    with Follower(tmp_path, 400, console, {}):
        for start in range(2):
            record.event("start", "3 workers", world_size=3, step=0)
            record.event("ready", "first step", step=1)
            for step in range(10 * start + 1, 10 * start + 4):
                time.sleep(0.1)
                record.metrics(step, **{"train/loss": 7.5, "train/lr": 0.02, "images_per_s": 336.0})
            time.sleep(0.1)
    console.file.close()
    first, *_, last = (
        line for line in console.export_text().splitlines() if line.startswith("step ")
    )
    figures = "loss 7.500  336 images/s  3 workers on 2 nodes"
    assert first == f"step 1/400  {figures}  lr 0.02"
    left = r"\d+:\d\d:\d\d left"
    assert re.fullmatch(rf"step 13/400  {re.escape(figures)}  1 restart  lr 0\.02  {left}", last)


def test_what_the_progress_shows_of_others_is_as_it_is(tmp_path: Path) -> None:
    record, result = Record(tmp_path), identification("set[x]")
    console = Console(width=150, record=True, file=(tmp_path / "shown").open("w"))
    with Follower(tmp_path, 20, console, {"set[x]": RANKS}):
        record.metrics(10, **result.metrics())
        record.metrics(20, **{"train/loss": 7.5, "images_per_s": 336.0})
        record.event("init", "a[x] [/b]", table={"columns": ["c"], "rows": [["d[x]"]]})
    console.file.close()
    text = console.export_text()
    for each in ("a[x] [/b]", "d[x]", "set[x] 50.0%"):
        assert each in text


def test_results_of_one_kind_stand_in_one_table() -> None:
    one, other = results_tables(
        [verification("lfw"), identification(), verification("cfp", auc=None)]
    )
    assert cells(one) == [
        ["set", "pairs", "10-fold", "best", "AUC", "TAR 1e-2", "TAR 1e-3"],
        ["lfw", "2,000", "89.30% ± 2.12%", "90.20%", "0.9620", "51.00%", "34.50%"],
        ["cfp", "2,000", "89.30% ± 2.12%", "90.20%", "one kind of pair only", "51.00%", "34.50%"],
    ]
    assert cells(other) == [
        ["set", "probes", "rank 1", "mAP"],
        ["gallery", "1,200", "50.00% [40.00%, 60.00%]", "0.250 ± 0.125"],
    ]


def test_tables_of_a_result_have_intervals_in_their_cells() -> None:
    rows = {
        "1e-2": {"tar": 0.51, "tar_low": 0.4, "tar_high": 0.625, "false_accepts": 1234.0},
        "1e-3": {"tar": None, "tar_low": None, "tar_high": None, "false_accepts": 1.0},
    }
    result = replace(identification(), tables={"tar_at_far": rows, "none": {}, "one": {"a": 0.5}})
    first, second = detail_tables([result])
    assert "gallery: tar at far" in shown(first)
    assert cells(first) == [
        ["tar", "false accepts"],
        ["1e-2", "0.51 [0.4, 0.625]", "1,234"],
        ["1e-3", "-", "1"],
    ]
    assert cells(second) == [["value"], ["a", "0.5"]]


def test_the_report_is_json_examples_and_plots(tmp_path: Path) -> None:
    step = tmp_path / "evaluation" / "step-00000007"
    files = save_report([verification(), identification()], step, 7)
    told = json.loads((step / "evaluation.json").read_text())
    assert told["step"] == 7
    assert told["sets"]["gallery"] == {
        "probes": 1200,
        "rank_1": 0.5,
        "rank_1_interval": [0.4, 0.6],
        "rank_5": 0.75,
        "map": 0.25,
        "map_std": 0.125,
        "groups": {"old": {"rank_1": 0.25}, "young": {"rank_1": None}},
    }
    assert list(told["sets"]["pairs"])[:4] == ["pairs", "accuracy", "accuracy_std", "best_accuracy"]
    assert [file.name for file in files] == [
        "evaluation.json",
        "results.json",
        "cmc-gallery.png",
        "cmc-gallery.svg",
        "ranks-gallery.png",
        "ranks-gallery.svg",
    ]
    there = {path.name for path in step.iterdir()}
    assert there == {*(file.name for file in files), "examples", ".lock"}
    assert report_folders(tmp_path) == {7: step}


def test_a_stored_result_is_the_result(tmp_path: Path) -> None:
    result = identification()
    save_report([result], tmp_path, 7)
    (stored,) = read_report(tmp_path).results
    assert stored.name == "gallery"
    assert stored.headline == RANKS[0]
    assert (stored.scalars, stored.counts) == (result.scalars, result.counts)
    assert (stored.deviations, stored.intervals) == (result.deviations, result.intervals)
    assert stored.tables == result.tables
    curve, given = stored.curves["cmc"], result.curves["cmc"]
    assert (curve.title, curve.log_x, curve.log_y) == ("CMC", True, False)
    for name in ("x", "y", "low", "high"):
        np.testing.assert_array_equal(getattr(curve, name), getattr(given, name))
    np.testing.assert_array_equal(curve.lines["old"].y, given.lines["old"][1])
    histogram = stored.histograms["ranks"]
    assert (histogram.mark, sum(histogram.counts["mated"])) == (0.5, 5)
    assert (histogram.edges[0], histogram.edges[-1]) == (0, 1)
    (example,) = stored.examples["worst probes"]
    assert (example.label, example.score) == ("Ann", 0.25)
    assert [(tmp_path / name).read_bytes() for name in example.images] == [JPEG, PNG]
    assert [Path(name).suffix for name in example.images] == [".jpg", ".png"]


def test_results_of_a_step_are_added_up_and_those_of_one_name_replaced(tmp_path: Path) -> None:
    save_report([verification(), identification()], tmp_path, 7)
    drawn = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    fewer = replace(identification(rank_1=0.25), examples={})
    files = save_report([fewer, verification("lfw")], tmp_path, 7)
    report = read_report(tmp_path)
    assert [result.name for result in report.results] == ["pairs", "gallery", "lfw"]
    assert report.results[1].scalars["rank_1"] == 0.25
    assert list((tmp_path / "examples").iterdir()) == []
    assert json.loads((tmp_path / "evaluation.json").read_text())["sets"].keys() == {
        "pairs", "gallery", "lfw"
    }  # fmt: skip
    redrawn = {path.name: path.stat().st_mtime_ns for path in files if path.suffix == ".png"}
    assert all(redrawn[name] > before for name, before in drawn.items())
    kept = files[-1].stat().st_mtime_ns
    assert draw_report(tmp_path)[-1].stat().st_mtime_ns == kept  # nothing is drawn twice


def test_a_broken_report_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results\.json: No such file .*`manyfaces evaluate RUN`"):
        read_report(tmp_path)
    for body in ("{", '{"format": 2, "step": 1, "results": []}', '{"format": 1, "step": 1}'):
        (tmp_path / "results.json").write_text(body)
        with pytest.raises(
            UserError, match=r"results\.json: .*; remove it and run `manyfaces eval"
        ):
            read_report(tmp_path)


def test_a_long_line_keeps_its_form(tmp_path: Path) -> None:
    far = np.geomspace(1e-6, 1, 100_000)
    tar = np.where(far < 1e-4, 0.5, 0.9)
    result = replace(
        identification(), curves={"roc": Curve("ROC", "FAR", "TAR", far, tar, log_x=True)}
    )
    save_report([result], tmp_path, 7)
    curve = read_report(tmp_path).results[0].curves["roc"]
    assert 200 < len(curve.x) <= 500
    assert (curve.x[0], curve.x[-1]) == (far[0], far[-1])
    thinned = np.interp(far, curve.x, curve.y)
    away = (far < 0.95e-4) | (far > 1.05e-4)  # from the step itself
    assert np.abs(thinned - tar)[away].max() < 1e-9


def test_nan_reaches_no_file(tmp_path: Path) -> None:
    nan, line = float("nan"), np.array([0.0, np.nan, 1.0])
    result = Result(
        "gallery",
        RANKS,
        {"rank_1": nan, "rank_5": 0.75, "map": np.float32(np.inf)},
        deviations={"map": nan},
        curves={"cmc": Curve("CMC", "rank", "hits", line, line)},
        histograms={"ranks": Histogram("ranks", "rank", "probes", {"mated": line})},
        tables={"groups": {"old": {"rank_1": nan}, "young": nan}},
    )
    save_report([result], tmp_path, 7)
    told = json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert told["sets"]["gallery"] == {
        "rank_1": None,
        "rank_5": 0.75,
        "map": None,
        "map_std": None,
        "groups": {"old": {"rank_1": None}, "young": None},
    }
    assert result.metrics() == {"gallery/rank_5": 0.75}
    assert cells(results_tables([result])[0])[1] == ["gallery", "not known", "no gallery"]
    record = Record(tmp_path)
    record.metrics(3, **{"train/loss": nan, "train/lr": 0.5})
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert row.keys() == {"step", "time", "train/lr"}


def test_plots_over_the_steps_of_a_run(tmp_path: Path) -> None:
    results = (verification(), verification("lfw"), identification())
    quantities = {result.name: result.quantities for result in results}
    rows = [{"step": i, "minutes": float(i), "train/loss": 8.0 - i} for i in range(3)]
    files = plot_metrics(rows, quantities, tmp_path)
    assert [file.name for file in files] == ["loss.png", "loss.svg"]
    rows += [{"step": 3, "minutes": 3.0, **result.metrics()} for result in results]
    files = plot_metrics(rows, quantities, tmp_path)
    names = [file.name for file in files if file.suffix == ".png"]
    assert names == ["loss.png", "accuracy.png", "rank_1.png"]


def test_scalars_that_nothing_describes_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"mine: the result has the scalars b, and its quant.* are a;"
    ):
        Result("mine", (Quantity("a", "a"),), {"b": 1.0})
    with pytest.raises(UserError, match="the scalars none, and its quantities are none"):
        Result("mine", (), {})
