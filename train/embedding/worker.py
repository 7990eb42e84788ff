"""What each rank does: its share of the missing parts, read ahead, decoded beside the network, and
written a part at a time."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, PositiveInt

from manyfaces.cluster.stop import current
from manyfaces.cluster.world import World
from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.protocol import Flip
from manyfaces.configs.split import batch_share
from manyfaces.data.sources.source import Dropped
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.train.embedding.ahead import ahead
from manyfaces.train.embedding.images import Images, open_images
from manyfaces.train.embedding.job import Job, Plan
from manyfaces.train.embedding.parts import PartRows
from manyfaces.train.embedding.source import Image, ImageSource
from manyfaces.train.evaluation.decoding import decodable
from manyfaces.train.evaluation.embedder import EmbeddedBatch, Embedder
from manyfaces.train.evaluation.encoders import open_encoder
from manyfaces.train.evaluation.result import Encoded

WORK = "manyfaces.train.embedding.worker:work"
FAILED = "manyfaces.train.embedding.worker:failed"
_BATCHES_AHEAD = 4
_SAY_S = 0.5
_NOT_DECODABLE = "not a whole, decodable image"


class Share(BaseModel):
    """What every rank is given."""

    name: str
    """What Ray calls the work."""
    folder: str
    """The working folder."""
    words: tuple[str, ...]
    """The images, as the person named them."""
    model: str
    parts: tuple[int, ...]
    """Those that were missing when the ranks were launched."""
    batch_size: PositiveInt
    threads: PositiveInt
    """torch's, and those that decode."""
    strict: bool
    """Whether an image that cannot be embedded ends the work."""


class Stopped(Exception):
    """Raised where this rank or another one was asked to stop, or another one cannot go on."""


def work(payload: dict[str, Any]) -> None:
    """One rank's share. What would keep it from going on again is said in the working folder, for
    the process that launched the ranks to raise: they are not started anew for it."""
    share = Share.model_validate(payload)
    job = Job(Path(share.folder))
    stop = current()
    stop.share(job.folder)
    stop.wait_for_checkpoint()
    try:
        _embed(share, job)
    except Stopped:
        return
    except UserError as error:
        job.say_fault(str(error))


def failed(payload: Mapping[str, Any], causes: Mapping[int, str], count: int) -> None:
    """Tell of the `count`-th failure of ranks, before they are started again."""
    rank, cause = min(causes.items())
    line = f"rank {rank} {cause}; its images since its last whole part are embedded again"
    Job(Path(payload["folder"])).say_failure(line)


@lru_cache(maxsize=1)
def opened_encoder(model: str, device: torch.device) -> Encoder:
    """The network. The process that launches the ranks asks it for its size, and may be a rank
    itself."""
    return open_encoder(Path(model), device)


@lru_cache(maxsize=1)
def opened_images(words: tuple[str, ...], options: tuple[tuple[str, Any], ...], to: Path) -> Images:
    """The images, which take long to list, for the same reason."""
    return open_images(words, dict(options), to)


def images_of(words: tuple[str, ...], plan_options: Mapping[str, Any], job: Job) -> Images:
    """The images that the words name, listed once in a process."""
    return opened_images(words, tuple(sorted(plan_options.items())), job.fetched)


@dataclass
class _Batch:
    """Some images of one part, in their order."""

    part: int
    images: list[tuple[ImageSource, Image]]
    sent: list[int]
    """Which of them are decoded."""
    faults: dict[int, str]
    """Why the others are not."""
    num_rows: int
    """Rows of all images that it has, with those that are forgotten."""
    is_last: bool
    """The part ends with it."""


def _embed(share: Share, job: Job) -> None:
    world, plan = World.current(), job.plan()
    torch.set_num_threads(share.threads)
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    images = images_of(share.words, plan.facts.options.of_sources(), job)
    _refuse_changed(images, plan)
    first, end = batch_share(len(share.parts), world.rank, world.size)
    own = [part for part in share.parts[first:end] if not job.part(part).exists()]
    encoder = opened_encoder(share.model, world.device)
    embedder = Embedder.of(encoder, share.batch_size)
    writer = _Writer(plan, job, world.rank, share.strict)
    try:
        batches = ahead(_batches(images, plan, own, share.batch_size), _BATCHES_AHEAD)
        flip: Flip = "sum" if plan.facts.options.flip else "none"
        for batch, embedded in embedder.stream(batches, flip=flip):
            writer.take(batch, embedded)
            if current().requested or job.fault() is not None:
                raise Stopped
        writer.finish()
    finally:
        writer.close()
        images.close()


def _refuse_changed(images: Images, plan: Plan) -> None:
    """Raise `UserError` where this process finds other images than the plan was made of."""
    for source, facts in zip(images.sources, plan.facts.sources, strict=True):
        if source.digest != facts.digest:
            raise UserError(
                f"{source.where}: its images have changed since the command began, or this machine "
                "has others; leave them alone while they are embedded"
            )


def _batches(
    images: Images, plan: Plan, parts: Sequence[int], batch_size: int
) -> Iterator[tuple[_Batch, list[Encoded]]]:
    """The images of the parts with their bytes. No batch has images of two parts, so that each
    image is in a batch with the same others, whatever the number of ranks."""
    for part in parts:
        rows = plan.rows(part)
        for start in range(rows.start, rows.stop, batch_size):
            chosen = range(start, min(start + batch_size, rows.stop))
            read = images.read(chosen)
            blobs = list[Encoded]()
            batch = _Batch(part, read, [], {}, len(chosen), chosen.stop == rows.stop)
            for number, (_, image) in enumerate(read):
                try:
                    if image.blob is None:
                        raise Dropped(image.fault)
                    blobs.append(decodable(image.blob))
                    batch.sent.append(number)
                except Dropped as reason:
                    batch.faults[number] = str(reason)
            yield batch, blobs


class _Writer:
    """Collects what is embedded, and writes each part in a thread once it is complete.

    On a GPU a batch is only waited for once the next one is under way.
    """

    def __init__(self, plan: Plan, job: Job, rank: int, strict: bool) -> None:
        self.plan, self.job, self.rank, self.strict = plan, job, rank, strict
        self._rows = PartRows(plan.facts)
        self._held: tuple[_Batch, EmbeddedBatch] | None = None
        self._pool = ThreadPoolExecutor(1, "parts")
        self._writing: Future[None] | None = None
        self._done = self._failed = 0
        self._said_at = 0.0

    def take(self, batch: _Batch, embedded: EmbeddedBatch) -> None:
        """Take the next batch. Raises `UserError` for embeddings that no file may hold, for an
        image that could not be embedded where that ends the work, and `OSError` for a part that
        could not be written."""
        held, self._held = self._held, (batch, embedded)
        if held is not None:
            self._add(*held)

    def finish(self) -> None:
        """Take that there is no batch any more, and wait until all is written."""
        if self._held is not None:
            self._add(*self._held)
        if self._writing is not None:
            self._writing.result()
        self._say_done(now=True)

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown()

    def _add(self, batch: _Batch, embedded: EmbeddedBatch) -> None:
        decoded = {batch.sent[row] for row in embedded.rows_N.tolist()}
        batch.faults.update((n, _NOT_DECODABLE) for n in batch.sent if n not in decoded)
        if batch.faults and self.strict:
            number, fault = min(batch.faults.items())
            source, image = batch.images[number]
            raise UserError(f"{source.where}: {image.key}: {fault}; mend it, or leave out --strict")
        for number, fault in sorted(batch.faults.items()):
            self._rows.add_failed(*batch.images[number], fault)
        embeddings_ND = embedded.embeddings_ND.cpu()
        norm_N = embeddings_ND.norm(dim=1)
        if self.plan.facts.options.normalised:
            embeddings_ND = F.normalize(embeddings_ND)
        self._refuse_not_finite(embeddings_ND)
        images = [batch.images[batch.sent[row]] for row in embedded.rows_N.tolist()]
        scores = {name: each.cpu().numpy() for name, each in embedded.scores.items()}
        self._rows.add(images, embeddings_ND.numpy(), norm_N.numpy(), scores)
        self._done += batch.num_rows
        self._failed += len(batch.faults)
        if batch.is_last:
            self._write(batch.part)
        self._say_done()

    def _write(self, part: int) -> None:
        if self._writing is not None:
            self._writing.result()
        rows, self._rows = self._rows, PartRows(self.plan.facts)
        self._writing = self._pool.submit(rows.write, self.job.part(part), self.job.failed(part))

    def _refuse_not_finite(self, embeddings_ND: torch.Tensor) -> None:
        if self.plan.facts.options.dtype == "float16":
            embeddings_ND = embeddings_ND.half()
        if not bool(embeddings_ND.isfinite().all()):
            facts = self.plan.facts
            raise UserError(
                f"{facts.model}: gives NaN or infinite embeddings as {facts.options.dtype}; give "
                "another checkpoint, or --dtype float32"
            )

    def _say_done(self, *, now: bool = False) -> None:
        """For who follows; a file a second costs nothing."""
        if now or time.monotonic() - self._said_at > _SAY_S:
            self._said_at = time.monotonic()
            self.job.say_done(self.rank, self._done, self._failed)
