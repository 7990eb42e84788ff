"""The page about runs: it is whole, safe and by itself, and its numbers are those of the record."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from statistics import median_high
from typing import Any

import pytest
from made_runs import STEPS, made_result, made_run, rows_of

from manyfaces.configs.errors import UserError
from manyfaces.train.evaluation.report import report_folder, save_results
from manyfaces.train.evaluation.result import Example
from manyfaces.train.folder import RunFolder
from manyfaces.train.report.own import write_own_page
from manyfaces.train.report.page import page_text
from manyfaces.train.report.run_data import distinct, read_run

VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(HTMLParser):
    """What the page holds. Raises `AssertionError` where a tag closes another one."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.open = text, list[str]()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        """The innermost tag, and the text in it."""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def of(self, tag: str) -> list[str]:
        """The texts directly in such tags."""
        return [text for inside, text in self.texts if inside == tag]

    def attributes(self, name: str) -> list[str]:
        """The values of all attributes of this name."""
        return [attributes[name] for _, attributes in self.tags if name in attributes]


def page_of(*runs: RunFolder, **options: Any) -> Page:
    return Page(page_text(distinct([read_run(run.path) for run in runs]), **options))


def table_of(page: Page, kind: str) -> Page:
    """The first table of this class."""
    rows = page.text.partition(f'<table class="{kind}">')[2].partition("</table>")[0]
    return Page(f"<table>{rows}</table>")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset_path: Path) -> RunFolder:
    """Must not be changed."""
    return made_run(tmp_path_factory.mktemp("runs"), data=dataset_path)


@pytest.fixture(scope="module")
def page(run: RunFolder) -> Page:
    return page_of(run)


def test_the_page_is_balanced_and_each_id_stands_once(page: Page) -> None:
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    targets = [href[1:] for href in page.attributes("href") if href.startswith("#")]
    assert targets
    assert set(targets) <= set(ids)


def test_the_page_needs_no_network(page: Page) -> None:
    for name in ("src", "href", "action", "poster", "data"):
        for value in page.attributes(name):
            assert value.startswith(("#", "data:image/")), value
    assert not re.search(r"@import|url\(", page.text)
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}


def test_the_headline_is_what_the_record_has(page: Page, run: RunFolder) -> None:
    rows = rows_of(run.path / "metrics.jsonl")
    last: dict[str, float] = {}
    for row in rows:
        last |= row
    rates = [row["images_per_s"] for row in rows if "images_per_s" in row]
    assert dict(zip(page.of("dt"), page.of("dd"), strict=True)) == {
        "pairs: accuracy (10-fold)": f"{last['pairs/accuracy']:.2%}",
        "loss, last": f"{last['train/loss']:.3f}",
        "images/s, median": f"{median_high(rates):,.0f}",
        "steps": f"{STEPS}",
        "minutes of training": f"{last['minutes']:.1f}",
    }


def test_figures_have_their_intervals_and_deviations(page: Page) -> None:
    table = table_of(page, "figures")
    labels = ["accuracy (10-fold)", "AUC", "EER"]
    assert table.of("th")[-3:] == labels
    assert table.of("td") == ["90.00%", "± 1.23%", "0.9123", "0.9012 to 0.9234", "not known"]
    assert not re.search(r"\bnan\b|\binf\b", " ".join(text for _, text in page.texts), re.I)


def test_each_chart_has_its_numbers_in_a_table(page: Page, run: RunFolder) -> None:
    charts = [attributes for _, attributes in page.tags if attributes.get("class") == "plot"]
    assert len(charts) == page.text.count("<details><summary>Numbers")
    assert all(chart["tabindex"] == "0" and chart["aria-label"] for chart in charts)
    losses = [
        row["train/loss"] for row in rows_of(run.path / "metrics.jsonl") if "train/loss" in row
    ]
    cells = set(page.of("td"))
    assert {f"{loss:.5g}" for loss in losses} <= cells


def test_every_part_of_a_result_is_shown(page: Page) -> None:
    captions = [*page.of("figcaption"), *page.of("caption")]
    charts = {"ROC, AUC 0.940", "DET", "Scores: 90.0% (10-fold)", "Images per identity"}
    assert charts | {"Groups: TAR", "Gaps"} <= {*captions}
    assert "threshold 0.200" in page.of("text")
    assert sum(value.startswith("data:image/jpeg") for value in page.attributes("src")) == 2
    assert {"A", "B"} <= set(page.of("th"))
    assert "0.70 to 0.90" in page.of("td")


def test_the_course_of_the_run_is_told(page: Page) -> None:
    assert "Dotted: attempt 2 began at step 20." in page.of("p")
    assert "stopped by Ctrl-C" in page.of("td")
    assert "forward pass of the network" in page.of("th")
    assert "11.0%" in page.of("td")  # forward_share, the same in all rows


EVIL = "<script>alert('x')</script>\"'&"


def test_nothing_that_a_name_holds_becomes_markup(tmp_path: Path) -> None:
    run = made_run(tmp_path, "evil")
    evil = [Example((b"no image", b"<svg onload=alert(1)>"), EVIL, 0.1)]
    result = made_result(EVIL, STEPS, {EVIL: evil})
    save_results([result], report_folder(run.path, STEPS + 10), STEPS + 10)
    run.config.write_text(run.config.read_text().replace("name: evil", f"name: {EVIL!r}"))
    run.plan.write_text(EVIL)
    run.quarantine.write_text(json.dumps({"sample": 1, "name": EVIL}) + "\n")
    events = run.path / "events.jsonl"
    events.write_text(events.read_text().replace("stopped by Ctrl-C", "<b onclick=x>"))
    plain = page_of(made_run(tmp_path, "plain"))
    page = page_of(run)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags} | {"span"}
    assert not [name for _, attributes in page.tags for name in attributes if name[:2] == "on"]
    shown = [text for _, text in page.texts]
    assert EVIL in shown
    assert "<b onclick=x>" in shown


def test_a_file_outside_of_its_folder_is_not_shown(tmp_path: Path) -> None:
    run = made_run(tmp_path, "r")
    (run.path / "evaluation" / "secret.jpg").write_bytes(b"\xff\xd8\xffsecret")
    results = report_folder(run.path, STEPS) / "results.json"
    text = results.read_text()
    name = re.search(r"examples/[^\"]+\.jpg", text)
    assert name is not None
    results.write_text(text.replace(name[0], "../secret.jpg"))
    sources = page_of(run).attributes("src")
    assert len(sources) == 1
    assert "c2VjcmV0" not in sources[0]


def test_credentials_are_not_shown(tmp_path: Path) -> None:
    run = made_run(tmp_path, "r")
    text = run.config.read_text().replace("path: gone", "path: s3://me:hunter2@bucket/faces")
    run.config.write_text(text)
    assert "hunter2" not in page_of(run).text


def test_runs_beside_each_other_show_exactly_what_differs(tmp_path: Path) -> None:
    first = made_run(tmp_path, "first", train={"batch_size": 64})
    second = made_run(tmp_path, "second", train={"batch_size": 128, "epochs": 7})
    page = page_of(first, second, differences_only=True)
    settings = table_of(page, "settings")
    epochs = read_run(first.path).config["train"]["epochs"]
    headings, cells = settings.of("th"), settings.of("td")
    assert headings[:3] == ["setting", "first", "second"]
    differing = {key: tuple(cells[2 * n : 2 * n + 2]) for n, key in enumerate(headings[3:])}
    assert differing == {
        "run.name": ("first", "second"),
        "train.batch_size": ("64", "128"),
        "train.epochs": (f"{epochs}", "7.0"),
    }
    assert "config.yaml" not in " ".join(page.of("summary"))
    whole = page_of(first, second)
    assert "config.yaml" in " ".join(whole.of("summary"))


def test_runs_of_one_name_are_told_apart_and_none_is_given_twice(tmp_path: Path) -> None:
    here, there = made_run(tmp_path / "a"), made_run(tmp_path / "b")
    page = page_of(here, there)
    assert f"{here.path} and {there.path}" in page.of("h1")
    with pytest.raises(UserError, match="given twice"):
        page_of(here, here)


def test_a_page_of_a_long_run_stays_small(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    row = (run.path / "metrics.jsonl").read_text().splitlines()[0]
    lines = [row.replace('"step": 1,', f'"step": {step},', 1) for step in range(1, 20_001)]
    (run.path / "metrics.jsonl").write_text("\n".join(lines))
    assert len(page_of(run).text) < 1_000_000


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("config.yaml", "config.yaml is not there"),
        ("metrics.jsonl", "metrics.jsonl has no numbers yet"),
        ("evaluation", "Results are not shown in detail"),
        ("events.jsonl", "not started, as far as the record tells"),
        ("plan.txt", ""),
    ],
)
def test_what_a_run_lacks_is_said(tmp_path: Path, file: str, told: str) -> None:
    run = made_run(tmp_path)
    path = run.path / file
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert told in " ".join(text for _, text in page_of(run).texts)


@pytest.mark.parametrize("file", ["metrics.jsonl", "events.jsonl", "config.yaml"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.77])
def test_a_torn_file_costs_its_end_only(tmp_path: Path, file: str, kept: float) -> None:
    run = made_run(tmp_path)
    body = (run.path / file).read_bytes()
    (run.path / file).write_bytes(body[: int(kept * len(body))] + b"\xff\x00")
    page = page_of(run)
    if kept or file != "metrics.jsonl":
        assert "Loss" in page.of("figcaption")
    if file != "events.jsonl":
        assert "finished" in page.of("p")


def test_a_broken_evaluation_is_said_and_the_others_are_shown(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    broken = report_folder(run.path, 50) / "results.json"
    broken.parent.mkdir(parents=True)
    broken.write_text('{"format": 1, "step": 50, "results": [{')
    page = page_of(run)
    assert any(str(broken) in text for text in page.of("li"))
    assert "DET" in page.of("figcaption")


def test_a_run_of_an_earlier_version_shows_the_numbers_that_it_has(tmp_path: Path) -> None:
    run = made_run(tmp_path, evaluated=False)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(
            '{"step": 40, "time": 9.0, "lfw/accuracy": 0.875, "lfw/auc": 0.9, "minutes": 4}\n'
        )
    page = page_of(run)
    assert dict(zip(page.of("dt"), page.of("dd"), strict=True))["lfw: accuracy"] == "0.875"
    assert "Accuracy" in page.of("figcaption")


def test_a_run_at_a_url_is_shown_from_what_its_store_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    monkeypatch.setattr("manyfaces.train.report.run_data.WORK_DIR", str(tmp_path / "work"))
    run, store = made_run(tmp_path, "far"), fsspec.filesystem("memory")
    for file in run.kept:
        store.pipe(f"/runs/far/{file.relative_to(run.path)}", file.read_bytes())
    page = Page(page_text([read_run("memory://runs/far")]))
    assert page.of("h1") == ["far"]
    assert "DET" in page.of("figcaption")
    assert "memory://runs/far" in page.of("td")
    assert not page.attributes("src")  # images of people are not sent to stores
    with pytest.raises(UserError, match=r"memory://runs/away: .*expected a run's folder"):
        read_run("memory://runs/away")


@pytest.mark.parametrize("what", ["nothing", "a folder", "a file"])
def test_what_is_no_run_is_refused_in_a_line(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x"
    if what == "a folder":
        path.mkdir()
    elif what == "a file":
        path.write_text("x")
    with pytest.raises(UserError, match=r"no (such folder|run in it); expected a run's folder"):
        read_run(path)


def test_a_training_leaves_its_page_and_never_fails_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, told = made_run(tmp_path), list[object]()
    write_own_page(run, told.append)
    assert Page(run.report.read_text()).of("h1") == ["first"]
    assert run.report in run.artifacts
    assert run.report in run.kept
    assert not told

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of all things\nsecond line")

    monkeypatch.setattr("manyfaces.train.report.page.write_page", fail)
    write_own_page(run, told.append)
    (line,) = map(str, told)
    assert "of all things" in line
    assert "second line" not in line
    assert f"manyfaces report {run.path}" in line
