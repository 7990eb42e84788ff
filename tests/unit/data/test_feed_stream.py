"""The feed's stream, with a CUDA that only writes down what it is asked for."""

import contextlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from manyfaces.configs.schema import Data
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.feed import loader as module
from manyfaces.data.feed.quarantine import Quarantine
from manyfaces.data.feed.stream import FeedStream
from manyfaces.data.feed.view_decoder import ViewDecoder

CPU = torch.device("cpu")


class Asked:
    """Stands for a stream, an event or a tensor: notes what is called on it."""

    def __init__(self, name: str, notes: list[Any]) -> None:
        self._name, self._notes = name, notes

    def wait_event(self, event: object) -> None:
        self._notes.append((self._name, "waits for", event))

    def record_stream(self, stream: object) -> None:
        self._notes.append((self._name, "is used on", stream))

    def record_event(self) -> str:
        return f"end of {self._name}"


def test_what_the_feed_made_is_used_when_it_is_made_and_kept_while_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notes: list[Any] = []
    training, image = Asked("training", notes), Asked("image", notes)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Asked(f"feed on {device}", notes))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: training)
    stream = FeedStream(torch.device("cuda:1"))
    made = stream.mark()
    assert made == "end of feed on cuda:1"  # type: ignore[comparison-overlap]
    stream.take([image], made)  # type: ignore[list-item]
    assert notes == [("training", "waits for", made), ("image", "is used on", training)]


def test_on_the_cpu_it_does_nothing() -> None:
    stream = FeedStream(CPU)
    with stream():
        assert stream.mark() is None
    stream.take([torch.zeros(1)], None)


class Counted:
    """A feed's stream that counts marks, and knows whether a thread is inside of it."""

    def __init__(self, device: torch.device) -> None:
        self.inside, self.marks, self.taken = threading.local(), 0, []  # type: ignore[var-annotated]

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        self.inside.yes = True
        yield

    def mark(self) -> int:
        self.marks += 1
        return self.marks

    def take(self, tensors: Iterable[Tensor], made: int) -> None:
        self.taken.append((made, [id(tensor) for tensor in tensors]))


def test_all_batches_are_made_on_the_feeds_stream_and_handed_over(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[Counted] = []
    monkeypatch.setattr(
        module, "FeedStream", lambda device: streams.append(Counted(device)) or streams[-1]
    )
    for name in ("start", "finish"):
        work = getattr(ViewDecoder, name)

        def inside(*given: Any, work: Any = work) -> Any:
            assert streams[0].inside.yes
            return work(*given)

        monkeypatch.setattr(ViewDecoder, name, inside)
    with module.Loader(
        dataset,
        Data(),
        seed=0,
        batch_size=24,
        rank=0,
        world_size=1,
        position=0,
        end=72,
        device=CPU,
        quarantine=Quarantine(tmp_path / "quarantine.jsonl", dataset, 0.001),
    ) as batches:
        handed = [[id(batch.images["main"]), id(batch.labels_N)] for batch in batches]
    assert streams[0].taken == list(enumerate(handed, start=1))
