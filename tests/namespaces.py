"""Several machines' networks on this one: namespaces with an address each, joined by a bridge that
stands in a namespace of its own. Nothing else is ever addressed."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import psutil
import pytest

INTERFACE = "face0"


def ip(*words: str) -> str:
    """Run `ip` with these words; returns what it prints."""
    command = ["ip", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


class Network:
    """Namespaces NAME-1, NAME-2, ...: number n has the address 10.211.0.n."""

    def __init__(self, name: str) -> None:
        self.name, self.bridge = name, f"{name}-net"
        self.names: list[str] = []

    def address(self, number: int) -> str:
        return f"10.211.0.{number}"

    def add(self) -> int:
        """A new namespace; returns its number."""
        number = len(self.names) + 1
        name, port = f"{self.name}-{number}", f"port{number}"
        ip("netns", "add", name)
        self.names.append(name)
        pair = ["type", "veth", "peer", "name", port, "netns", self.bridge]
        ip("-n", name, "link", "add", INTERFACE, *pair)
        ip("-n", name, "addr", "add", f"{self.address(number)}/24", "dev", INTERFACE)
        ip("-n", name, "link", "set", INTERFACE, "up")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.bridge, "link", "set", port, "master", "bridge0", "up")
        return number

    def cut(self, number: int) -> None:
        """Take the namespace from the network; `join` brings it back."""
        ip("-n", self.bridge, "link", "set", f"port{number}", "down")

    def join(self, number: int) -> None:
        ip("-n", self.bridge, "link", "set", f"port{number}", "up")

    def command(self, number: int, words: Sequence[object]) -> list[str]:
        """The words as a command in the namespace."""
        return ["ip", "netns", "exec", self.names[number - 1], *map(str, words)]

    def run(self, number: int, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run to the end in the namespace."""
        given = {"capture_output": True, "text": True, "timeout": 240, "check": False, **options}
        return subprocess.run(self.command(number, words), **given)

    def close(self) -> None:
        """End all that runs in the namespaces, and remove them."""
        for name in self.names:
            for pid in ip("netns", "pids", name).split():
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(int(pid)).kill()
        for name in [*self.names, self.bridge]:
            ip("netns", "del", name)


@contextlib.contextmanager
def network(count: int) -> Iterator[Network]:
    """So many namespaces while the block runs. Skips the test where they cannot be made."""
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need `ip` of iproute2, which is not installed")
    made = Network(f"faces{os.getpid()}")
    try:
        ip("netns", "add", made.bridge)
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip()
        pytest.skip(f"network namespaces need CAP_SYS_ADMIN and CAP_NET_ADMIN: {reason}")
    try:
        try:
            ip("-n", made.bridge, "link", "add", "bridge0", "type", "bridge")
            ip("-n", made.bridge, "link", "set", "bridge0", "up")
            for _ in range(count):
                made.add()
        except subprocess.CalledProcessError as error:
            told = error.stderr.strip()
            if "not supported" in told or "Unknown device type" in told:
                pytest.skip(f"the kernel has no veth or no bridge: {told}")
            raise
        yield made
    finally:
        made.close()
