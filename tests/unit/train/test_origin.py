"""Where a run comes from: its code, its command and its user, without credentials."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from manyfaces.train.tracking import origin as module
from manyfaces.train.tracking.origin import VARIABLE, code, command_line, origin, shipped_origin


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GIT_DIR", "GIT_WORK_TREE"):  # a hook of git's sets them
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "code"
    root.mkdir()
    (root / "pyproject.toml").write_text("")
    git(root, "init", "--quiet")
    git(root, "add", "pyproject.toml")
    own = ("user.name=a", "user.email=a@b", "commit.gpgsign=false")
    settings = [word for setting in own for word in ("-c", setting)]
    git(root, *settings, "commit", "--quiet", "-m", "x")
    return root


def git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", root, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_is_told_and_whether_files_differ_from_it(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    (repository / "notes.txt").write_text("not of the code")
    assert code(repository) == {"commit": commit, "dirty": False}
    (repository / "pyproject.toml").write_text("changed")
    assert code(repository) == {"commit": commit, "dirty": True}


def test_a_repository_that_does_not_answer_in_time_is_not_told_as_changed(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = module._git
    slow = {"status": None}
    monkeypatch.setattr(module, "_git", lambda root, *words: slow.get(words[0], ask(root, *words)))
    assert code(repository) == {"commit": git(repository, "rev-parse", "HEAD")}


def test_a_wheel_does_not_bear_the_commit_of_the_folder_that_it_is_installed_in(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = repository / ".venv" / "site-packages"
    installed.mkdir(parents=True)
    monkeypatch.setattr(module, "_installed_commit", lambda: "")
    assert code(installed) == {}
    (installed / "pyproject.toml").write_text("")  # of a package that brings its own
    assert code(installed) == {}
    monkeypatch.setattr(module, "_installed_commit", lambda: "d" * 40)
    assert code(installed) == {"commit": "d" * 40, "dirty": False}


def test_the_command_has_no_credentials() -> None:
    words = [
        "/x/bin/manyfaces",
        "train",
        "c.yaml",
        "tracking.uri=http://u:PLANTED@h",
        "run.name=a b",
    ]
    told = "manyfaces train c.yaml 'tracking.uri=http://***@h' 'run.name=a b'"
    assert command_line(words) == told
    assert command_line(["/x/manyfaces/train/__main__.py", "check"]) == "manyfaces check"


def test_the_command_has_no_secrets_that_are_known_by_their_name_or_their_form() -> None:
    token = "hf_" + "a1B2c3D4" * 4
    words = [
        "manyfaces",
        "train",
        "model.parameters.api_key=PLANTED, PLANTED",
        "head.margin={kind: custom, parameters: {authToken: 'PLANTED, x', 'secret': PLANTED, s: 2}}",
        f"run.name=of {token}",
        "head.margin.m=0.5",
    ]
    told = shlex.split(command_line(words))
    assert told[2:] == [
        "model.parameters.api_key=***",
        "head.margin={kind: custom, parameters: {authToken: ***, 'secret': ***, s: 2}}",
        "run.name=of ***",
        "head.margin.m=0.5",
    ]


def test_a_job_says_what_was_known_where_it_was_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("sys.argv", ["manyfaces", "submit", "c.yaml"])
    here = origin()
    assert (here["source"], here["command"]) == ("LOCAL", "manyfaces submit c.yaml")
    monkeypatch.setenv(VARIABLE, shipped_origin())
    monkeypatch.setattr("sys.argv", ["manyfaces", "train", "config.yaml"])
    assert origin() == {**here, "source": "JOB"}
    for damaged in ("", "{", "7"):
        monkeypatch.setenv(VARIABLE, damaged)
        assert origin()["source"] == "LOCAL"
    assert json.loads(shipped_origin())["user"] == here["user"]
