"""A real S3-compatible server (moto's) in a process of its own, and a proxy before it that injects
faults and counts what is asked for."""

import http.client
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import s3fs

SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
SIGNED = {
    "authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
}


@contextmanager
def faulty_store() -> Iterator["Proxy"]:
    """A server behind a proxy, where this process and its children look for S3."""
    with s3_server() as port, pytest.MonkeyPatch.context() as patch:
        proxy = Proxy(port)
        for name, value in {
            **CREDENTIALS,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
        }.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # one that was made for another endpoint
        yield proxy
        proxy.close()


@contextmanager
def s3_server() -> Iterator[int]:
    """The port; the server ends with the block, and with its parent."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


class Proxy:
    """Forwards to `upstream`. `faults[part of a path]` lists what befalls the next GETs of it: a
    status, or a fault named below; `put_faults` those of PUTs. `gets` counts GETs by path, `writes`
    lists PUTs and DELETEs in their order."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.faults: dict[str, list[int | str]] = {}
        self.put_faults: dict[str, list[int | str]] = {}
        self.gets: Counter[str] = Counter()
        self.writes: list[tuple[str, str]] = []
        self.port = 0
        self._listen()

    def forget(self) -> None:
        for each in (self.faults, self.put_faults, self.gets, self.writes):
            each.clear()

    def _listen(self) -> None:
        proxy = self

        def due(faults: dict[str, list[int | str]], path: str) -> int | str | None:
            return next((f.pop(0) for part, f in faults.items() if f and part in path), None)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                proxy.gets[self.path.split("?")[0]] += 1
                proxy.answer(self, due(proxy.faults, self.path))

            def do_PUT(self) -> None:
                proxy.writes.append((self.command, self.path.split("?")[0]))
                proxy.answer(self, due(proxy.put_faults, self.path))

            do_DELETE = do_PUT

            def forward(self) -> None:
                proxy.answer(self, None)

            do_HEAD = do_POST = forward

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @contextmanager
    def away(self, seconds: float) -> Iterator[None]:
        """Connections are refused from now on for so long, at most until the block ends."""
        self.close()
        back = threading.Timer(seconds, self._listen)
        back.start()
        try:
            yield
        finally:
            back.cancel()
            back.join()
            if not self.thread.is_alive():
                self._listen()

    def put(self, path: str, body: bytes = b"") -> None:
        """Readable by everyone, so that it can be asked for over plain HTTP."""
        self.request("PUT", path, body, {**SIGNED, "x-amz-acl": "public-read"})

    def delete(self, path: str) -> None:
        self.request("DELETE", path, b"", SIGNED)

    def request(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=10)
        try:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def answer(self, handler: BaseHTTPRequestHandler, fault: int | str | None) -> None:
        if handler.headers.get("expect"):  # the writer waits for leave
            handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            del handler.headers["expect"]
        asked = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        if isinstance(fault, int):
            handler.send_response(fault)
            handler.send_header("content-length", "0")
            handler.end_headers()
            return
        if fault == "reset":
            handler.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            handler.connection.close()
            return
        status, headers, body = self.request(
            handler.command, handler.path, asked, dict(handler.headers)
        )
        told = {"length": len(body)}
        if fault == "wrong bytes":
            body = body[:600] + bytes([body[600] ^ 1]) + body[601:]
        if fault == "shorter file":
            body = body[:-512]
            told["length"] = len(body)
        handler.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection") and (
                handler.command == "HEAD" or name.lower() != "content-length"
            ):
                handler.send_header(name, value)
        if handler.command != "HEAD":
            handler.send_header("content-length", str(told["length"]))
        handler.end_headers()
        try:
            if fault == "cut off":
                body = body[: len(body) // 2]
            elif fault == "hangs":
                handler.wfile.write(body[:1000])
                time.sleep(6)
                return
            elif fault == "slow":
                for at in range(0, len(body), 100):
                    handler.wfile.write(body[at : at + 100])
                    time.sleep(0.05)
            handler.wfile.write(body)
        except OSError:  # the reader had enough
            handler.close_connection = True


def upload(proxy: Proxy, folder: Path, bucket: str, prefix: str) -> str:
    """The folder's files to the store; its URL."""
    proxy.put(f"/{bucket}")
    for path in folder.iterdir():
        proxy.put(f"/{bucket}/{prefix}/{path.name}", path.read_bytes())
    return f"s3://{bucket}/{prefix}"
