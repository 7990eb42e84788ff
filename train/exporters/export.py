"""What `manyfaces export` does: write a network in a format, compare what was written with what it
was made of, and put a card beside it."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import file_sha256
from manyfaces.train.evaluation.exported import Precision, facts_of
from manyfaces.train.exporters import latency as speed
from manyfaces.train.exporters.agreement import LEAST_COSINE, Agreement, agreement
from manyfaces.train.exporters.card import Facts, Said, card
from manyfaces.train.exporters.exporter import Exporter, Job
from manyfaces.train.exporters.faces import Faces, faces_of, own_faces
from manyfaces.train.exporters.score import Scored, scored
from manyfaces.train.exporters.source import Source

NUM_IMAGES = 128


@dataclass(frozen=True)
class Request:
    """How a network is to be exported."""

    exporter: Exporter
    out: Path
    """A new file or folder."""
    precision: Precision = "float32"
    check: Path | None = None
    """Images that it is checked on."""
    calibrate: Path | None = None
    """Images that int8 is calibrated on."""
    num_images: int = NUM_IMAGES
    pairs: Path | None = None
    """A verification set to score before and after."""
    latency: bool = False
    said: Said = field(default_factory=Said)


@dataclass(frozen=True)
class Exported:
    """What was written."""

    out: Path
    card: Path
    sha256: str
    agreement: Agreement
    is_checked_on_faces: bool
    """Whether the images of the check were real ones."""
    scores: Scored | None
    latency: speed.Latency | None


def export(
    source: Source, request: Request, tell: Callable[[str], None] = lambda what: None
) -> Exported:
    """Write a network, whole or not at all; `tell` is told what goes on. Raises `UserError` for a
    place that is taken, a precision that the format does not have, images that cannot be read, a
    network that the format cannot hold, and one that comes out as another than it went in."""
    exporter, out = request.exporter, request.out
    _refuse(request)
    tell("reading images")
    faces, calibration = _images(source, request)
    facts = facts_of(source.encoder, source.told, request.precision)
    images_NHWC = calibration.images_NHWC if calibration is not None else None
    job = Job(source.encoder, facts, images_NHWC)
    with _unfinished(out) as scratch:
        tell(f"writing {exporter.word}")
        exporter.write(job, scratch)
        tell("comparing with the network in training")
        written = exporter.opened(job, scratch, source.encoder.device)
        agreed = agreement(source.encoder, written, faces.images_NHWC, faces.told)
        _refuse_other(agreed, request)
        scores = None
        if request.pairs is not None:
            tell(f"scoring {request.pairs.name}")
            scores = scored(source.encoder, written, request.pairs, tell)
        timed = None
        if request.latency:
            tell("measuring one face on one core")
            timed = speed.measured(lambda: exporter.opened(job, scratch, torch.device("cpu")))
        weights = exporter.weights_in(scratch)
        card_facts = Facts(
            name=out.name,
            described=exporter.described,
            usage=exporter.usage.format(name=out.name),
            sha256=file_sha256(weights),
            num_bytes=weights.stat().st_size,
            exported=facts,
            takes=exporter.takes(job),
            said=request.said,
            state=source.state,
            checkpoint=source.checkpoint,
            source_sha256=source.sha256,
            checks=_checks(agreed, calibration, scores),
            latency=_latency_lines(timed),
        )
        place = _put(scratch, out, card(card_facts))
    return Exported(out, place, card_facts.sha256, agreed, faces.real, scores, timed)


def _refuse(request: Request) -> None:
    """Raise `UserError` for what cannot be, before anything is computed."""
    exporter, out = request.exporter, request.out
    if request.precision not in exporter.precisions:
        has = ", ".join(exporter.precisions)
        raise UserError(f"--precision {request.precision}: --to {exporter.word} has {has}")
    if exporter.ending and out.suffix != exporter.ending:
        raise UserError(f"{out}: expected a name that ends in {exporter.ending}")
    for place in (out, *([] if not exporter.ending else [_card_beside(out)])):
        if place.exists():
            raise UserError(f"{place}: exists; give another name or remove it")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder; make it first")
    if request.precision == "int8" and request.calibrate is None:
        raise UserError(
            "--precision int8 is calibrated on real faces; give --calibrate with a folder of "
            "images, a dataset or a .bin"
        )
    exporter.require()


def _images(source: Source, request: Request) -> tuple[Faces, Faces | None]:
    """The images to check on, and those to calibrate on."""
    most, image_hw = request.num_images, source.encoder.image_hw
    calibration = None
    if request.calibrate is not None:
        calibration = faces_of(request.calibrate, most, image_hw)
    if request.check is not None:
        faces = faces_of(request.check, most, image_hw)
    else:
        faces = calibration or own_faces(source.config, most, image_hw)
    return faces, calibration if request.precision == "int8" else None


def _refuse_other(agreed: Agreement, request: Request) -> None:
    if request.precision == "float32" and agreed.least < LEAST_COSINE:
        raise UserError(
            f"{request.out}: not written: the exported network is another than the one in "
            f"training: {agreed}, and {LEAST_COSINE} is the least that is taken; export it in "
            "another format"
        )


def _checks(agreed: Agreement, calibration: Faces | None, scores: Scored | None) -> list[str]:
    told = [f"Against the network in training, in float32: {agreed}."]
    if calibration is not None:
        told.append(f"Calibrated on {calibration.told}.")
    if scores is not None:
        told += [f"{scores.name}, {line}." for line in scores.lines()]
    return told


def _latency_lines(timed: speed.Latency | None) -> list[str]:
    if timed is None:
        return []
    rows = [f"{s.name}: {s.median_ms:.2f} ms, 95 % in {s.slowest_ms:.2f} ms" for s in timed.stages]
    return [*rows, *timed.lines()]


@contextlib.contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """A name beside `out` to write to, of which nothing is left where anything goes wrong."""
    scratch = out.with_name(f".unfinished-{out.name}")
    _remove(scratch)
    try:
        yield scratch
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(f"{out}: cannot be written ({error})") from error
    finally:
        _remove(scratch)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _card_beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.md")


def _put(scratch: Path, out: Path, text: str) -> Path:
    """Give what was written its name, and its card beside it, or within it where it is a folder;
    returns the card."""
    if scratch.is_dir():
        (scratch / "README.md").write_text(text)
        scratch.rename(out)
        return out / "README.md"
    unfinished = _card_beside(scratch)
    try:
        unfinished.write_text(text)
        unfinished.rename(_card_beside(out))
    finally:
        unfinished.unlink(missing_ok=True)
    scratch.rename(out)
    return _card_beside(out)
