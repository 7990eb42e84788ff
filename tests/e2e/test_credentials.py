"""Credentials in URLs work, and stand in nothing that a run leaves or shows; a new password goes on
with the run."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from commands import forked, recipe, rows

from manyfaces.configs.load import load
from manyfaces.data.dataset.dataset import open_data
from manyfaces.train.folder import RunFolder
from manyfaces.train.run_identity import differing, identity_here, stored_identity

FIRST, SECOND = "PLANTED1", "PLANTED2"
OWN = """
from manyfaces.data.transforms.transform import Transform


class Invert(Transform):
    num_uniform = 1

    def __init__(self, source):
        assert "PLANTED" in source

    def draw(self, uniform_NU, image_hw):
        return {"is_inverted": uniform_NU[:, 0] < 0.5}

    def apply(self, fn, types, image, given, image_hw):
        if given["is_inverted"] > 0:
            image = fn.cast(255 - image, dtype=types.UINT8)
        return image
"""


class Guarded(SimpleHTTPRequestHandler):
    """Files below a folder, for who gives one of the passwords."""

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "").removeprefix("Basic ")
        if base64.b64decode(given).decode() in (f"user:{FIRST}", f"user:{SECOND}"):
            super().do_GET()
        else:
            self.send_error(401)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """The port at which the folder is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Guarded, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def holding(folder: Path) -> list[Path]:
    """The files below the folder in whose names or bytes a password stands."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if b"PLANTED" in path.read_bytes() or "PLANTED" in str(path)]


def words(password: str, port: int, own: Path) -> list[str]:
    """A command line with the password in every URL of the configuration."""
    transform = f"{{kind: custom, file: {own}, name: Invert, parameters: "
    transform += f"{{source: 'https://h/x?X-Amz-Signature={password}&part=1'}}}}"
    return [
        f"data.path=http://user:{password}@127.0.0.1:{port}/made",
        f"data.augment=[{transform}]",
        f"cluster.address=ray://user:{password}@127.0.0.1:1",
    ]


def test_no_password_is_left_or_shown(dataset_path: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN)
    config = recipe(
        tmp_path,
        dataset_path,
        data={"cache_dir": str(tmp_path / "cache"), "store_patience_s": 5},
        train={"epochs": 0.2},
        cluster={"workers": 1, "launcher": "process"},
    )
    runs, run = tmp_path / "runs", tmp_path / "runs" / "run"
    with served(dataset_path.parent) as port:
        done = forked("train", config, *words(FIRST, port, own))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "http://***@127.0.0.1" in done.stdout
        told = "credentials stand in data.path, data.augment.0.parameters.source, cluster.address"
        assert done.stderr.count(told) == 1
        assert (runs / "mlflow.db").stat().st_size
        assert list((runs / "mlartifacts").rglob("config.yaml"))
        assert "***" in (run / "config.yaml").read_text()

        # With another password it is the same run.
        changed = load(config, words(SECOND, port, own))
        here = identity_here(changed, open_data(changed.data))
        assert differing(here, stored_identity(RunFolder(run))) == ""
    assert "PLANTED" not in done.stdout + done.stderr
    assert holding(runs) == holding(tmp_path / "cache") == []
    assert [row["kind"] for row in rows(run / "events.jsonl")][-1] == "finished"
    [checkpoint] = (run / "checkpoints").iterdir()
    stored = json.loads((checkpoint / "state.json").read_text())["config"]["data"]["path"]
    assert stored == f"http://***@127.0.0.1:{port}/made"
