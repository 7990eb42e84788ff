"""Long work over images in several processes, under one progress bar."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from manyfaces.configs.errors import UserError
from manyfaces.data.progress import ImageBar

T = TypeVar("T")


def run_parallel(
    tasks: Iterable[Callable[[], T]],
    weights: Sequence[int],
    title: str,
    processes: int | None = None,
) -> list[T]:
    """Run the tasks and return their results in their order, under one progress bar counted in
    `weights` (images).

    The tasks run in `processes` processes of their own (default: one a core), or in this one where
    that is 1. A task is taken when a process is about to be free for it, so that `tasks` may be
    made as they are needed. Raises `UserError` where the system ended one of the processes.
    """
    results: dict[int, T] = {}
    processes = processes or os.cpu_count() or 1
    running = _run_here(tasks) if processes == 1 else _run_in_processes(tasks, processes, title)
    with ImageBar(title, sum(weights)) as bar:
        for number, result in running:
            results[number] = result
            bar.count(weights[number])
    return [results[number] for number in range(len(results))]


def _run_here(tasks: Iterable[Callable[[], T]]) -> Iterator[tuple[int, T]]:
    return ((number, task()) for number, task in enumerate(tasks))


def _run_in_processes(
    tasks: Iterable[Callable[[], T]], processes: int, title: str
) -> Iterator[tuple[int, T]]:
    # Forking a process that has threads can deadlock.
    context = multiprocessing.get_context("spawn")
    running: dict[Future[T], int] = {}
    with ProcessPoolExecutor(processes, context, initializer=_end_with_parent) as pool:

        def finished(at_most: int) -> Iterator[tuple[int, T]]:
            """Wait for results until at most so many tasks are running."""
            while len(running) > at_most:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()

        try:
            for number, task in enumerate(tasks):
                running[pool.submit(task)] = number
                yield from finished(2 * processes - 1)
            yield from finished(0)
        except BrokenProcessPool as error:
            raise UserError(
                f"{title}: a process was ended from outside (out of memory?); give fewer "
                "--processes and run it again"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """End this process when its parent ends. A pool's processes would wait for work for ever when
    their parent was killed with -9, because they hold each other's pipes open."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
