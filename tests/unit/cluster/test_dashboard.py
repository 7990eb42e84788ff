"""A dashboard's address is right, or what is wrong with it is told in one line within seconds."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from manyfaces.cluster.dashboard import (
    LOCAL,
    dashboard_address,
    open_line,
    ray_version,
    read_log,
    token,
)
from manyfaces.configs.errors import UserError


@pytest.mark.parametrize(
    ("given", "environment", "address"),
    [
        (None, {}, LOCAL),
        ("http://a:8265/", {"RAY_ADDRESS": "http://b:1"}, "http://a:8265"),
        (None, {"RAY_ADDRESS": "https://b"}, "https://b"),
        (None, {"RAY_ADDRESS": ""}, LOCAL),
        (None, {"RAY_ADDRESS": "auto", "RAY_API_SERVER_ADDRESS": "http://c:1"}, "http://c:1"),
    ],
)
def test_which_address_is_taken(
    given: str | None, environment: dict[str, str], address: str
) -> None:
    assert dashboard_address(given, environment) == address


@pytest.mark.parametrize(
    ("given", "environment", "line"),
    [
        ("a:8265", {}, "--address a:8265: the scheme is missing; give --address http://a:8265"),
        ("ray://a:10001", {}, "is not a dashboard's address; give --address http://a:8265"),
        (
            None,
            {"RAY_ADDRESS": "a:6379"},
            "RAY_ADDRESS a:6379: is not a dashboard's address (6379 is the port where nodes join); give --address http://a:8265",
        ),
        (
            "http://a:6379",
            {},
            "--address http://a:6379: is not a dashboard's address (6379 is the port where nodes join); give --address http://a:8265",
        ),
        ("", {}, "--address : is not a dashboard's address; give --address http://HOST:8265"),
        ("http://", {}, "is not a dashboard's address; give --address http://HOST:8265"),
        ("http://a:x", {}, "--address http://a:x: is not a dashboard's address"),
        ("http://[a", {}, "--address http://[a: is not a dashboard's address"),
    ],
)
def test_what_is_no_address_of_a_dashboard(
    given: str | None, environment: dict[str, str], line: str
) -> None:
    with pytest.raises(UserError, match=re.escape(line)):
        dashboard_address(given, environment)


@contextmanager
def answering(status: int, body: bytes, wanted_token: str | None = None) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown = self.headers.get("Authorization")
            refused = wanted_token is not None and shown != f"Bearer {wanted_token}"
            self.send_response(401 if refused else status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


RAY = json.dumps({"ray_version": "2.60.0"}).encode()


def test_a_dashboard_tells_its_version() -> None:
    with answering(200, RAY) as address:
        assert ray_version(address) == "2.60.0"


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"<html>"), (200, b"[]"), (200, b'{"version": 4}'), (404, RAY)]
)
def test_what_answers_is_no_dashboard(status: int, body: bytes) -> None:
    with (
        answering(status, body) as address,
        pytest.raises(UserError, match="something answers there, but not a Ray dashboard"),
    ):
        ray_version(address)


def test_another_protocol_is_no_dashboard() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"\0\0\0\4\0\0\0\0\0\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UserError, match="something answers there, but not a Ray dashboard"):
            ray_version(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()


def test_nothing_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UserError, match=r"no Ray dashboard answers there .*refused"):
        ray_version(f"http://127.0.0.1:{port}")


def test_a_token_is_shown_and_a_missing_one_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with answering(200, RAY, wanted_token="secret") as address:
        with pytest.raises(UserError, match="wants a token, and none is here; set RAY_AUTH_TOKEN"):
            ray_version(address)
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("secret\n")
        assert ray_version(address) == "2.60.0"
        (tmp_path / "given").write_text("other")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "given"))
        with pytest.raises(UserError, match=r"this is not it: RAY_AUTH_TOKEN_PATH, .*given; set"):
            ray_version(address)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nothing"))
        with pytest.raises(UserError, match=r"none is here: RAY_AUTH_TOKEN_PATH, .*does not exist"):
            ray_version(address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "other")
        with pytest.raises(UserError, match="wants a token, and this is not it: RAY_AUTH_TOKEN; "):
            ray_version(address)
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        with pytest.raises(UserError, match="RAY_AUTH_MODE is disabled, so that none is shown"):
            ray_version(address)
    assert token({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "secret"}) is None


@pytest.mark.parametrize("address", [LOCAL, "http://localhost:1", "http://[::1]:8265"])
def test_who_is_on_this_machine_needs_no_token(address: str) -> None:
    assert open_line(address) is None


@pytest.mark.parametrize(("mode", "is_open"), [("token", False), ("disabled", True)])
def test_an_address_that_is_open_to_others_is_told(
    mode: str, is_open: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manyfaces.cluster.dashboard._is_loopback", lambda host: False)
    with answering(200, json.dumps({"authentication_mode": mode}).encode()) as address:
        line = open_line(address)
    assert (line is not None) == is_open
    if line is not None:
        assert line.startswith(f"{address} asks for no token: whoever reaches it runs what they")


def test_a_file_of_rays_logs() -> None:
    with answering(200, b"text\n") as address:
        assert read_log(address, "node", "a.log", 1) == "text\n"
    with answering(500, b"A file is not found") as address:
        assert read_log(address, "node", "a.log", 1) is None


def test_a_node_that_is_late_has_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manyfaces.cluster.dashboard.TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert read_log(address, "node", "a.log", 1) is None
        with pytest.raises(UserError, match=r"answers there \(no answer within 0.2 s\)"):
            ray_version(address)
