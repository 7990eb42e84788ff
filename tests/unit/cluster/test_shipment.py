"""What travels with a job: the code, the facts of its package, and the configuration as a file."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from manyfaces.cluster import jobs


@pytest.mark.parametrize("facts", [[], ["manyfaces-0.1.0.dist-info"]])
def test_a_job_brings_its_code_and_its_version(
    facts: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("manyfaces", "other-1.0.dist-info", *facts):
        (tmp_path / name).mkdir()

    @contextlib.contextmanager
    def unpacked() -> Iterator[Path]:
        yield tmp_path / "manyfaces"

    monkeypatch.setattr(jobs, "package", unpacked)
    with jobs.shipment("run: {}\n") as shipped:
        assert shipped["py_modules"] == [str(tmp_path / name) for name in ("manyfaces", *facts)]
        folder = Path(shipped["working_dir"])
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            jobs.CONFIG: "run: {}\n"
        }
    assert not folder.exists()
