"""An iterator that works ahead in a thread, for work that waits for disks and stores."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_POLL_S = 0.2


class _End:
    """Behind the last element, with what ended the iterator otherwise."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def ahead(elements: Iterable[T], depth: int) -> Iterator[T]:
    """The elements, up to `depth` of them made before they are asked for. What raises while they
    are made is raised here, in its turn; whoever stops asking ends the thread."""
    ready: queue.Queue[T | _End] = queue.Queue(depth)
    stopping = threading.Event()

    def put(element: T | _End) -> None:
        while not stopping.is_set():
            try:
                return ready.put(element, timeout=_POLL_S)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for element in elements:
                put(element)
                if stopping.is_set():
                    return
            put(_End())
        except BaseException as error:
            put(_End(error))

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            element = ready.get()
            if not isinstance(element, _End):
                yield element
            elif element.error is not None:
                raise element.error
            else:
                return
    finally:
        stopping.set()
        thread.join()
