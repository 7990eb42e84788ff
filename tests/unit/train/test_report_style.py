"""The report's page in a browser, and the colours of its style sheet."""

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from made_runs import made_run

import manyfaces.train.report
from manyfaces.train.report.page import page_text
from manyfaces.train.report.run_data import read_run
from manyfaces.train.report.svg import STYLES

CSS = Path(manyfaces.train.report.__path__[0], "page.css").read_text()
OKABE_ITO = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#f0e442"}
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

# What a person does and sees, written where the page's text can be read afterwards.
PROBE = """<script>
addEventListener("load", () => {
  const told = document.documentElement.dataset, plot = document.querySelector(".plot");
  plot.focus();
  for (const key of ["End", "ArrowLeft"])
    plot.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  told.readout = plot.querySelector("output").textContent;
  told.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  told.paper = getComputedStyle(document.body).backgroundColor;
  const shown = (kind) => document.querySelector(kind).getClientRects().length;
  const choice = document.querySelector("input[value=minutes]");
  told.before = [shown(".by-step"), shown(".by-minutes")];
  choice.click();
  told.after = [shown(".by-step"), shown(".by-minutes")];
});
</script>"""


def colours(dark: bool) -> dict[str, str]:
    """The variables of the style sheet that hold colours."""
    light, _, rest = CSS.partition("@media screen and (prefers-color-scheme: dark)")
    return dict(
        re.findall(r"--([\w]+): (#[0-9a-f]{6});", rest.partition("}\n}")[0] if dark else light)
    )


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2.2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_and_lines_stand_out(dark: bool) -> None:
    known = colours(dark)
    paper = known["paper"]
    assert min(contrast(known[name], paper) for name in ("ink", "soft", "warn")) >= 4.5
    series = [known[f"c{number}"] for number in range(5)]
    assert {*series} <= OKABE_ITO | {known["ink"]}
    assert min(contrast(colour, paper) for colour in series) >= 3


def test_no_two_lines_look_alike() -> None:
    looks: dict[int, list[str]] = {number: [] for number in range(STYLES)}
    rules = re.findall(r"^((?:\.s\d+, )*\.s\d+) \{ (--c|--dash): ([^;]+);", CSS, re.M)
    for names, kind, value in rules:
        for number in re.findall(r"\d+", names):
            looks[int(number)].append(f"{kind} {value}")
    assert all(looks.values())
    pairs = itertools.combinations(looks.values(), 2)
    assert not [pair for pair in pairs if pair[0] == pair[1]]


@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
@pytest.mark.parametrize(
    ("size", "dark", "paper"),
    [("1366,900", False, "rgb(255, 255, 255)"), ("390,844", True, "rgb(21, 24, 27)")],
    ids=["laptop", "phone"],
)
def test_a_browser_shows_it_and_keys_move_along_a_line(
    tmp_path: Path, size: str, dark: bool, paper: str
) -> None:
    run = made_run(tmp_path)
    file = tmp_path / "page.html"
    text = page_text([read_run(run.path)])
    file.write_text(text.replace("</body>", f"{PROBE}</body>"))
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}"]
    words += [f"--window-size={size}", "--virtual-time-budget=2000", "--dump-dom"]
    words += ["--blink-settings=preferredColorScheme=0"] * dark
    ended = subprocess.run(
        [CHROMIUM, *words, file.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    root = re.search(r"<html[^>]*>", ended.stdout)
    assert root is not None
    told = dict(re.findall(r'data-(\w+)="([^"]*)"', root[0]))
    loss = next(row["train/loss"] for row in read_run(run.path).rows if row["step"] == 39)
    assert told == {
        "readout": f"step 39loss {loss:.5g}",
        "overflow": "0",
        "paper": paper,
        "before": "1,0",
        "after": "0,1",
    }
