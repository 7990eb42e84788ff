"""A job on nodes that have networks of their own: it is submitted from a third one, survives that a
node's network is cut for a while, and nothing listens where it was not told to."""

import contextlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from commands import recipe, wait_until
from namespaces import INTERFACE, Network, network
from node_runs import last_step, measured
from trained_samples import check_in_order

pytestmark = pytest.mark.slow

HEAD, WORKER, SUBMITTER = 1, 2, 3
CUT_S = 20
BATCH = 16
WAIT_S = 400
REACHES = """
import socket, sys
for port in sys.argv[2:]:
    try:
        socket.create_connection((sys.argv[1], int(port)), timeout=3).close()
        print(port)
    except OSError:
        pass
"""


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """Three networks; processes that this test starts find each other by their addresses."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", INTERFACE)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with network(3) as made:
        yield made


@pytest.fixture
def short() -> Iterator[str]:
    """A folder for Ray's sockets, whose names may not be long."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield folder


def start_head(net: Network, folder: str, *words: str) -> None:
    own = f"--node-ip-address={net.address(HEAD)}", f"--temp-dir={folder}"
    start(net, HEAD, "--head", *own, *words)


def start(net: Network, number: int, *words: str) -> None:
    common = "--num-cpus=1", f"--object-store-memory={100 << 20}", "--disable-usage-stats"
    done = net.run(number, sys.executable, "-m", "ray.scripts.scripts", "start", *words, *common)
    assert done.returncode == 0, done.stdout + done.stderr


def manyfaces(net: Network, *words: object) -> tuple[int, str]:
    done = net.run(SUBMITTER, sys.executable, "-m", "manyfaces.train", *words)
    return done.returncode, done.stdout + done.stderr


def ports_of(net: Network, number: int) -> list[int]:
    """The ports at which processes of the namespace listen, on whatever address."""
    name = net.names[number - 1]
    own = os.stat(f"/run/netns/{name}").st_ino  # noqa: PTH116
    listening = None
    for pid in (p.pid for p in psutil.process_iter() if netns_of(p.pid) == own):
        with contextlib.suppress(OSError):  # the process may have gone meanwhile
            tables = [Path(f"/proc/{pid}/net/{table}").read_text() for table in ("tcp", "tcp6")]
            listening = [line.split() for table in tables for line in table.splitlines()[1:]]
            break
    assert listening is not None, f"no process is left in {name}"
    return sorted({int(row[1].rpartition(":")[2], 16) for row in listening if row[3] == "0A"})


def netns_of(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino  # noqa: PTH116
    except OSError:
        return 0


def test_the_dashboard_listens_on_loopback_unless_told(short: str, net: Network) -> None:
    start_head(net, short)
    listening = ports_of(net, HEAD)
    assert 8265 in listening
    probe = [sys.executable, "-c", REACHES]
    reached = net.run(SUBMITTER, *probe, net.address(HEAD), *listening).stdout.split()
    assert "6379" in reached, "the way there is open"
    assert "8265" not in reached
    assert net.run(HEAD, *probe, "127.0.0.1", 8265).stdout.split() == ["8265"]
    address = f"http://{net.address(HEAD)}:8265"
    code, text = manyfaces(net, "jobs", "list", "--address", address)
    assert code == 2
    assert re.fullmatch(rf"error: {address}: no Ray dashboard answers there \(.*refused.*\n", text)


def test_a_job_survives_a_network_cut(
    short: str,
    net: Network,
    dataset_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = f"http://{net.address(HEAD)}:8265"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 40)
    start_head(net, short, f"--dashboard-host={net.address(HEAD)}")
    gcs = f"{net.address(HEAD)}:6379"
    start(net, WORKER, f"--address={gcs}", f"--node-ip-address={net.address(WORKER)}")
    config = recipe(
        tmp_path,
        dataset_path,
        train={"batch_size": BATCH, "epochs": 4000},
        tracking={"log_every_steps": 1, "log_samples": True},
    )
    run = tmp_path / "runs" / "run"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 40)
    code, text = manyfaces(net, "submit", config, "--address", address)
    assert code == 2
    assert "wants a token, and this is not it: RAY_AUTH_TOKEN; set RAY_AUTH_TOKEN" in text
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 40)
    code, text = manyfaces(net, "submit", config, "--address", gcs)
    assert code == 2
    assert "(6379 is the port where nodes join); give --address " + address in text
    code, text = manyfaces(net, "submit", config, "--address", address)
    assert code == 0, text
    assert "asks for no token" not in text
    job = re.findall(r"raysubmit_\w+", text)[0]

    try:
        wait_until(lambda: last_step(run) >= 8, timeout_s=WAIT_S)
        net.cut(WORKER)
        cut_at = time.time()
        time.sleep(CUT_S)
        held_at = last_step(run)
        net.join(WORKER)
        wait_until(lambda: last_step(run) >= held_at + 12, timeout_s=WAIT_S)
        times = [row["time"] for row in measured(run)]
        again_s = next(time_s for time_s in times if time_s > cut_at + CUT_S) - cut_at - CUT_S
        known = json.loads(manyfaces(net, "jobs", "status", job, "--json", "--address", address)[1])
        print(  # noqa: T201
            f"ROW a network cut of {CUT_S} s | {known['status']['restarts']} restarts | first step "
            f"{again_s:.1f} s after it"
        )
        assert known["state"] == "RUNNING"
        assert known["status"]["workers"] == 2
        code, text = manyfaces(net, "jobs", "stop", job, "--address", address)
        assert f"{job}: STOPPED; checkpoint of step {last_step(run)}" in text
    finally:
        print(manyfaces(net, "jobs", "logs", job, "--address", address)[1])  # noqa: T201
    check_in_order(config, run)
