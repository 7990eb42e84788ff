"""Progress of long work where there is no terminal: lines, not too many of them."""

import io

import pytest
from rich.console import Console

from manyfaces.data import progress


def test_lines_tell_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    out, now = io.StringIO(), [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.image_progress("embedding", Console(file=out, width=200)) as tell:
        for second in range(1, 26):
            now[0] = 100.0 + second
            tell(second * 10, 1000)
    assert out.getvalue().splitlines() == [
        "embedding: 100 of 1,000 images, 10 images/s, 90 s left",
        "embedding: 200 of 1,000 images, 10 images/s, 80 s left",
    ]


def test_a_terminal_shows_a_bar_that_goes_away() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True)
    with progress.image_progress("embedding", console) as tell:
        tell(3, 10)
        tell(10, 10)
    assert "10/10" in out.getvalue()


def test_rows_of_other_work_have_lines_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    out, now = io.StringIO(), [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.image_progress("embedding", Console(file=out, width=200)) as tell:
        tell(5, 10)
        for second in range(0, 25, 4):
            now[0] = 100.0 + second
            tell.rows("scoring lfw", second * 1000, 100_000)
    assert out.getvalue().splitlines() == [
        "scoring lfw: 12,000 of 100,000 rows, 1,000 rows/s, 88 s left",
        "scoring lfw: 24,000 of 100,000 rows, 1,000 rows/s, 76 s left",
    ]


def test_rows_have_a_bar_beside_that_of_the_images() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True)
    with progress.image_progress("embedding", console) as tell:
        tell(3, 10)
        tell.rows("scoring lfw", 40, 100)
    assert "scoring lfw" in out.getvalue()
    assert "40/100" in out.getvalue()
