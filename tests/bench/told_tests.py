"""Runs a folder of tests and tells on lines of JSON how many have passed so far, and each that has
not: for bench_gpu.py."""

import os
import sys
from collections import Counter
from typing import TextIO

import pytest
from told_rows import Row, tell


class Told:
    """A plugin of pytest, which tells on `out`: pytest itself takes what is printed."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.outcomes: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the test; tell the first line of what is wrong."""
        if report.when != "call" and report.outcome == "passed":
            return
        self.outcomes[report.outcome] += 1
        if report.outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            lines = str(crash.message if crash else report.longrepr).splitlines() or [""]
            tell(
                Row(report.nodeid.split("/")[-1], None, detail=f"failed: {lines[0][:160]}"),
                self.out,
            )
        others = ", ".join(f"{self.outcomes[o]} {o}" for o in ("failed", "skipped"))
        tell(Row("tests passed", self.outcomes["passed"], detail=others), self.out)


if __name__ == "__main__":
    rows = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what pytest prints is no row
    sys.exit(pytest.main([sys.argv[1], "-q", "-p", "no:cacheprovider"], plugins=[Told(rows)]))
