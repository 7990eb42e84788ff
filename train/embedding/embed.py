"""What `manyfaces embed` does: check, plan, launch the ranks, put the parts together.

`OUT.parquet` is one file, which is put together from parts at the end; any other OUT is a folder,
where the parts stay. Until all is embedded, the parts of `OUT.parquet` are in `OUT.parquet.parts`.
"""

import contextlib
import shutil
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console

from manyfaces.cluster import jobs, launch
from manyfaces.cluster.device import worker_device
from manyfaces.cluster.group import first_alone, joined
from manyfaces.cluster.stop import StoppedAtOnce, StoppedError, current
from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.configs.files import file_sha256, write_atomic
from manyfaces.configs.launcher import under_torchrun, works_here
from manyfaces.configs.urls import url_of
from manyfaces.train.embedding.facts import Facts, Options, SourceFacts, difference, read_facts
from manyfaces.train.embedding.follow import Follower
from manyfaces.train.embedding.images import Images
from manyfaces.train.embedding.job import Job, Plan, usual_part_images
from manyfaces.train.embedding.parts import join_parts, write_failed
from manyfaces.train.embedding.source import printable
from manyfaces.train.embedding.worker import (
    FAILED,
    WORK,
    Share,
    images_of,
    opened_encoder,
    opened_images,
)
from manyfaces.train.initial_weights import trained_file

SUFFIX = ".parquet"
_SHARE = "share.json"
_POLL_S = 0.2
_REMEDY = "give another --out, or remove it"


@dataclass(frozen=True)
class Request:
    """What a person has asked for."""

    model: str
    words: tuple[str, ...]
    """The images."""
    out: Path
    options: Options
    cluster: schema.Cluster
    batch_size: int
    strict: bool = False
    part_images: int | None = None
    """Rows of a part; None for the usual number."""

    @property
    def is_one_file(self) -> bool:
        """Whether the parts are put together at the end."""
        return self.out.suffix == SUFFIX

    @property
    def job(self) -> Job:
        """Where the parts are written."""
        return Job(Path(f"{self.out}.parts") if self.is_one_file else self.out)

    @property
    def failed(self) -> Path:
        """The list of the images that could not be embedded."""
        return Path(f"{self.out}.failed.jsonl")


def embed(request: Request, console: Console) -> None:
    """Embed all images, or those of which no part is written yet. Raises `UserError`, and
    `StoppedError` where it was asked to stop."""
    try:
        _embed(request, console)
    except StoppedAtOnce:
        raise StoppedError(f"stopped by {current().reason}; the same command goes on") from None


def _embed(request: Request, console: Console) -> None:
    if not under_torchrun():
        return _lead(request, console)
    with joined(request.cluster), contextlib.ExitStack() as held:
        prepared = first_alone(partial(prepare, request, console, held), "list the images")
        if prepared is not None:
            return _run(request, prepared, console)
        try:
            body = (request.job.working / _SHARE).read_bytes()
        except FileNotFoundError:  # rank 0 has found that all is embedded already
            return
        share = Share.model_validate_json(body)
        if share.parts:
            _launch(share, request)


def _lead(request: Request, console: Console) -> None:
    with contextlib.ExitStack() as held:
        _run(request, prepare(request, console, held), console)


def prepare(request: Request, console: Console, held: contextlib.ExitStack) -> Share:
    """Check all that can be known before the ranks begin, and plan what each does. `held` gets what
    keeps other processes out."""
    job = request.job
    _refuse_place(request)
    launch.refuse(request.cluster)
    # A program may embed twice, and files may have changed in between.
    opened_encoder.cache_clear()
    opened_images.cache_clear()
    model = trained_file(request.model).absolute()
    device = worker_device() if works_here(request.cluster) else torch.device("cpu")
    encoder = opened_encoder(str(model), device)
    job.folder.mkdir(parents=True, exist_ok=True)
    held.enter_context(job.claimed())
    job.forget_session()
    images = images_of(request.words, request.options.of_sources(), job)
    for note in [note for source in images.sources for note in source.notes]:
        console.print(f"note: {note}")
    facts = Facts(
        version=version("manyfaces"),
        model=printable(str(model)),
        weights_sha256=file_sha256(model),
        image_hw=encoder.image_hw,
        embedding_dim=encoder.model.embedding_dim,
        scores=tuple(encoder.score_heads),
        options=request.options,
        folder=str(Path.cwd()),
        sources=_source_facts(images),
    )
    plan = _plan(request, job, facts)
    share = Share(
        name="embed",
        folder=str(job.folder.absolute()),
        words=request.words,
        model=str(model),
        parts=tuple(job.missing(plan)),
        batch_size=request.batch_size,
        threads=request.cluster.threads_per_worker,
        strict=request.strict,
    )
    write_atomic(job.working / _SHARE, share.model_dump_json())
    return share


def _refuse_place(request: Request) -> None:
    """Raise `UserError` for a place where no embeddings can be written."""
    out = request.out
    if url_of(out) is not None:
        raise UserError(f"{out}: embeddings are written to a disk; give a path of this machine")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out.absolute().parent}: no such folder; make it first")
    if request.is_one_file and out.is_dir():
        raise UserError(f"{out}: is a folder; {_REMEDY}")
    if not request.is_one_file and out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, and no OUT.parquet; {_REMEDY}")
    folder = request.job.folder
    if folder.is_dir() and not request.job.is_ours():
        raise UserError(f"{folder}: holds other files than embeddings; {_REMEDY}")


def _source_facts(images: Images) -> tuple[SourceFacts, ...]:
    return tuple(
        SourceFacts(
            where=source.where, in_files=source.in_files, images=len(source), digest=source.digest
        )
        for source in images.sources
    )


def _plan(request: Request, job: Job, facts: Facts) -> Plan:
    """The plan that was begun with, or a new one. Raises `UserError` where what is there was begun
    otherwise."""
    out, before = request.out, None
    if job.has_plan():
        before = job.plan().facts
    elif request.is_one_file and out.exists():
        try:
            before = read_facts(pq.read_schema(out), str(out))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{out}: exists, and is no whole parquet file; {_REMEDY}") from error
    if before is None:
        plan = Plan(
            facts=facts,
            part_images=request.part_images or usual_part_images(facts.num_images),
        )
        job.begin(plan)
        return plan
    if told := difference(before, facts):
        raise UserError(f"{out}: was begun {told}; {_REMEDY}")
    return job.plan() if job.has_plan() else Plan(facts=before, part_images=1)


def _run(request: Request, share: Share, console: Console) -> None:
    """Launch the ranks, show what they do, and finish."""
    job = request.job
    if request.is_one_file and request.out.exists():
        shutil.rmtree(job.folder)
        console.print(f"{request.out}: is complete already")
        return
    plan = job.plan()
    if share.parts:
        left = sum(len(plan.rows(part)) for part in share.parts)
        total, stop = plan.facts.num_images, current()
        if left < total:
            console.print(f"{total - left:,} of {total:,} images are embedded already")
        stop.share(job.folder, looks=False)
        with Follower(job, left, console) as follower:
            _launch(share, request)
            _wait_for_others(job, plan)
        if (fault := job.fault()) is not None:
            raise UserError(fault)
        done = total - sum(len(plan.rows(part)) for part in job.missing(plan))
        if stop.requested:
            raise StoppedError(
                f"stopped by {stop.reason}; {done:,} of {total:,} images are embedded; the same "
                "command goes on"
            )
        if follower.rate:
            console.print(f"rate        {follower.rate:,.0f} images/s")
    elif not request.is_one_file:
        console.print(f"{request.out}: is complete already")
    _finish(request, plan, console)


def _launch(share: Share, request: Request) -> None:
    job = request.job
    work = launch.Work(
        WORK,
        FAILED,
        share.model_dump(),
        job.logs,
        has_trained=lambda: True,
        saved=lambda: len(job.whole()),
    )
    launch.launch(work, request.cluster, job.working.absolute(), jobs.package)


def _wait_for_others(job: Job, plan: Plan) -> None:
    """Until the other ranks of torchrun are through as well: where one dies, torchrun ends all."""
    while under_torchrun() and job.missing(plan):
        if current().requested or job.fault() is not None:
            return
        time.sleep(_POLL_S)


def _finish(request: Request, plan: Plan, console: Console) -> None:
    """Put the parts together where they are to be one file, and say what came out. Raises
    `UserError` where not one image could be embedded."""
    job, out = request.job, request.out
    rows, failed = write_failed(job, plan, request.failed)
    if not rows:
        why = f"not one of {failed:,} images could be embedded, and {request.failed} says why"
        raise UserError(f"{out}: {why if failed else 'all images are forgotten'}")
    if request.is_one_file:
        join_parts(job, plan, out)
        shutil.rmtree(job.folder)
    else:
        job.clear()
    console.print(f"embeddings  {out}: {rows:,} of {plan.facts.embedding_dim} numbers")
    if failed:
        console.print(f"failed      {failed:,} images, each with the reason in {request.failed}")
