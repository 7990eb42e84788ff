"""Where a run comes from: its code, the command, who gave it and on which host. Known only where a
person gives the command: it travels to the workers with the run's configuration, and to a cluster
in the environment of the job."""

import contextlib
import getpass
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from manyfaces.configs.redact import redact
from manyfaces.configs.secrets import without_secrets

VARIABLE = "MANYFACES_ORIGIN"
"""The environment variable of a job that was submitted from elsewhere."""
_GIT_S = 5.0
_LONGEST = 4000
"""Characters of a command; servers take some thousand in a tag."""


def origin() -> dict[str, Any]:
    """What is known of it, without credentials: `command`, `user`, `host`, `source` (LOCAL or JOB),
    and where they are known `commit` and `dirty`."""
    with contextlib.suppress(ValueError, RecursionError):
        shipped = json.loads(os.environ.get(VARIABLE, ""))
        if isinstance(shipped, dict):
            return {**shipped, "source": "JOB"}
    here = {
        "command": command_line(sys.argv)[:_LONGEST],
        "user": _user(),
        "host": socket.gethostname(),
        "source": "LOCAL",
    }
    return here | code(Path(__file__).resolve().parents[2])


def shipped_origin() -> str:
    """The value of `VARIABLE` for a job that this process submits."""
    return json.dumps(origin())


def command_line(words: Sequence[str]) -> str:
    """The command for people, without credentials and without the folder of the program."""
    program = Path(words[0])
    name = "manyfaces" if program.name == "__main__.py" else program.name
    return shlex.join(redact(without_secrets(word)) for word in [name, *words[1:]])


def code(root: Path) -> dict[str, Any]:
    """The commit of the code in this folder, and whether files differ from it where git says so; of
    an installed package the commit that pip installed. Nothing where neither is known."""
    if (root / "pyproject.toml").is_file() and (top := _git(root, "rev-parse", "--show-toplevel")):
        commit = _git(root, "rev-parse", "HEAD")
        # The code of a wheel may stand in the folder of another project, with its own commits.
        if commit and Path(top).resolve() == root:
            changed = _git(root, "status", "--porcelain", "--untracked-files=no")
            # A large repository may not answer in time.
            dirty = {} if changed is None else {"dirty": changed != ""}
            return {"commit": commit, **dirty}
    commit = _installed_commit()
    return {"commit": commit, "dirty": False} if commit else {}


def _installed_commit() -> str:
    """What pip wrote down of a package that it took from a repository."""
    try:
        told = json.loads(distribution("manyfaces").read_text("direct_url.json") or "{}")
        return str(told.get("vcs_info", {}).get("commit_id", ""))
    except (PackageNotFoundError, OSError, ValueError, AttributeError):
        return ""


def _git(root: Path, *words: str) -> str | None:
    """What git prints; None where there is no git or no repository."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words],
            capture_output=True,
            text=True,
            timeout=_GIT_S,
            check=True,
            env=environment,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return str(os.getuid())
