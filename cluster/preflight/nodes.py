"""One actor on each node of a cluster, pinned to it, which answers for the node. It takes no CPU of
Ray's, so that a busy cluster can be asked too.

Every wait is bounded. A node that is late or dies is named, and left out of what follows.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from manyfaces.cluster.preflight import bandwidth, probes
from manyfaces.cluster.preflight.probes import Answer, Folder, FolderAnswer, System

START_S, ANSWER_S = 120.0, 60.0
"""Longest waits: for a node's first answer, before which it may have to fetch code and import
torch; for any other."""


class _Probe:
    """Answers on one node."""

    def __init__(self) -> None:
        self._writing = probes.Writing()
        self._store: Any = None

    def system(self, address: str) -> System:
        return probes.system(address)

    def clock(self) -> float:
        return time.time()

    def write(self, folder: Folder, name: str) -> FolderAnswer:
        return self._writing.write(folder, name)

    def seen(self, folder: Folder, names: Sequence[str]) -> list[str]:
        return probes.seen(folder, names)

    def remove_files(self) -> None:
        self._writing.remove_files()

    def remove_folders(self) -> None:
        self._writing.remove_folders()

    def ask(self, function: str, payload: dict[str, object]) -> Answer:
        return probes.asked(function, payload)

    def open_store(self, address: str) -> int:
        self._store, port = bandwidth.open_store(address)
        return port

    def reach_store(self, address: str, port: int) -> None:
        self._store = bandwidth.reach_store(address, port)

    def join(self, backend: str, rank: int, size: int) -> None:
        bandwidth.join(self._store, backend, rank, size)

    def all_reduce(self) -> float:
        return bandwidth.all_reduce_bytes_s()

    def pairs(self, partners: Sequence[int | None]) -> list[float | None]:
        return bandwidth.pair_bytes_s(partners)


class Nodes:
    """The actors of all nodes that still answer, by the node's id."""

    def __init__(self, ids: Sequence[str]) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor = ray.remote(_Probe)
        self.actors: dict[str, Any] = {}
        self.faults: dict[str, str] = {}
        for node in ids:
            pinned = NodeAffinitySchedulingStrategy(node, soft=False)
            self.actors[node] = actor.options(num_cpus=0, scheduling_strategy=pinned).remote()

    def ask(
        self,
        method: str,
        arguments: Callable[[str], tuple[Any, ...]] = lambda node: (),
        *,
        of: Sequence[str] | None = None,
        timeout_s: float = ANSWER_S,
        may_fail: bool = False,
    ) -> dict[str, Any]:
        """What this method returns on all nodes, or on those with these ids, asked at once. A node
        that is late or dies is a fault from then on; one on which the method raises, too, but with
        `may_fail`: then what it raised is returned."""
        import ray
        import ray.exceptions

        asked = {
            node: getattr(self.actors[node], method).remote(*arguments(node))
            for node in (self.actors if of is None else of)
            if node in self.actors
        }
        if not asked:
            return {}
        done, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout_s)
        finished, answers = set(done), {}
        for node, reference in asked.items():
            if reference not in finished:
                self._drop(node, f"no answer within {timeout_s:.0f} s ({method})")
                continue
            try:
                answers[node] = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                if may_fail:
                    answers[node] = RuntimeError(_cause(error))
                else:
                    self._drop(node, f"{method}: {_cause(error)}")
            except ray.exceptions.RayError as error:
                self._drop(node, f"{type(error).__name__}: {_first_line(error)} ({method})")
        return answers

    def _drop(self, node: str, fault: str) -> None:
        import ray

        self.faults[node] = fault
        ray.kill(self.actors.pop(node))

    def end(self) -> None:
        import ray

        for actor in self.actors.values():
            ray.kill(actor)


def _cause(error: Any) -> str:
    """The last line of what a method has raised."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else repr(cause)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
