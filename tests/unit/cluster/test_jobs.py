"""Jobs of a cluster that answers late or not at all: every wait ends."""

import asyncio
import zipfile
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from manyfaces.cluster import jobs
from manyfaces.configs.errors import UserError


class Client:
    """Ray's client of a job that prints a line, and then nothing more."""

    waits: list[tuple[str, float]]

    def __init__(self, address: str) -> None:
        self.waits = []

    def _do_request(self, method: str, endpoint: str, *, timeout: float) -> Any:
        self.waits.append((method, timeout))

    def get_job_info(self, job: str) -> Any:
        self._do_request("GET", f"/api/jobs/{job}")
        raise RuntimeError(f"Request failed with status code 500: {job} is busy")

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "a line\n"
        if job == "hangs":
            await asyncio.Event().wait()


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> jobs.Jobs:
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", Client)
    monkeypatch.setattr(jobs, "ray_version", lambda address: version("ray"))
    return jobs.Jobs("http://127.0.0.1:8265")


def test_following_ends_when_the_cluster_is_gone(
    there: jobs.Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def gone(address: str) -> str:
        asked.append(address)
        if len(asked) != 2:  # late once is not gone
            raise UserError("no Ray dashboard answers there")
        return version("ray")

    monkeypatch.setattr(jobs, "ray_version", gone)
    monkeypatch.setattr(jobs, "SILENCE_S", 0.01)
    monkeypatch.setattr(jobs.Jobs, "job", lambda *_: None)
    told: list[str] = []
    with pytest.raises(UserError, match="no Ray dashboard answers there; whether hangs still runs"):
        there.follow("hangs", told.append)
    assert len(asked) == 2 + jobs.MISSES
    there.follow("ends", told.append)
    assert told == ["a line\n", "a line\n"]


def test_every_request_has_a_time_limit(there: jobs.Jobs) -> None:
    there._client._do_request("PUT", "/api/packages/gcs/a.zip")
    with pytest.raises(UserError, match="8265: Request failed with status code 500: a-404 is busy"):
        there.job("a-404")
    assert there._client.waits == [("PUT", jobs.UPLOAD_S), ("GET", jobs.ANSWER_S)]


def test_the_code_is_that_of_a_wheel_and_the_sources_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders: list[Path] = []

    def own_wheel(folder: Path) -> Path:
        folders.append(folder)
        with zipfile.ZipFile(folder / "manyfaces-1.whl", "w") as archive:
            archive.writestr("manyfaces/a.py", "")
        return folder / "manyfaces-1.whl"

    monkeypatch.setattr(jobs, "own_wheel", own_wheel)
    monkeypatch.setattr(jobs, "sources", Path)
    with jobs.package() as one, jobs.package() as other:
        assert [one.parent, other.parent] == folders
        assert [path.name for path in one.iterdir()] == ["a.py"]
    monkeypatch.setattr(jobs, "sources", lambda: None)
    with jobs.package() as installed:
        assert (installed / "cluster" / "jobs.py").is_file()
