"""Conversion of sources into one dataset: which images of whom, under which class ids, in which
order."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs import rng
from manyfaces.configs.errors import UserError
from manyfaces.data.conversion.align import TEMPLATE_NAME
from manyfaces.data.conversion.edit import Edit
from manyfaces.data.conversion.items import SourceItems, reading_order
from manyfaces.data.conversion.landmarks import Landmarks
from manyfaces.data.conversion.merge import merge_identities
from manyfaces.data.conversion.report import write_report
from manyfaces.data.dataset.manifest import Manifest
from manyfaces.data.dataset.write import refuse_foreign, write_dataset
from manyfaces.data.sources.recognise import NO_OPTIONS, recognise_each
from manyfaces.data.sources.source import Source

WINDOW_SHARDS = 8
"""Images that can only be read in groups are mixed over so many shards; each group is read once for
each of them."""
_UNCHANGED = Edit()


def convert(
    paths: Sequence[Path],
    out: Path,
    *,
    seed: int = 0,
    processes: int | None = None,
    shard_images: int = 8192,
    options: Mapping[str, object] = NO_OPTIONS,
    edit: Edit = _UNCHANGED,
    landmarks: Path | None = None,
    min_images: int = 1,
    identity_map: Path | None = None,
) -> Manifest:
    """Convert what the paths hold (`sources.recognise`) into one dataset, with a report beside it.

    `options` holds what the kinds of source take, by the names of `sources.source_options`. Class
    ids are in seeded random order, so that a block of ids is a random set of people; names go to
    `identities.txt`, line = class id. Images are in seeded random order over all shards. Identities
    of several sources are named `source/identity` and stay distinct, unless `identity_map` (lines
    `name<TAB>merged name`) joins them. Identities with fewer than `min_images` images are left out.
    Raises `UserError`.
    """
    _check_arguments(paths, out, edit)
    sources = recognise_each(paths, options)
    known, identity_N = merge_identities(sources, identity_map)
    points = Landmarks(landmarks) if landmarks else None
    classes = _assign_classes(known, identity_N, max(min_images, 1), seed)
    if not classes.names:
        raise UserError(
            f"{', '.join(map(str, paths))}: no identity has --min-images {min_images}; the most "
            f"images of one are {classes.count_C.max()}"
        )
    rows = np.flatnonzero(classes.class_N >= 0)
    order = reading_order(sources, rows, seed, WINDOW_SHARDS * shard_images)
    few = classes.left_out
    reason = f"of an identity with fewer than {min_images} images"
    left_out = {reason: int(classes.count_C[few].sum())} if few else {}
    facts = _facts(sources, edit, seed, min_images, identity_map)
    return write_dataset(
        out,
        SourceItems(sources, classes.class_N, order, points),
        edit,
        classes.names,
        source=_what_decides(sources, classes, points, edit, seed),
        shard_images=shard_images,
        processes=processes,
        template=TEMPLATE_NAME if edit.align else None,
        dropped_before=chain(
            (
                {"source": str(source.path), "name": name, "reason": why}
                for source in sources
                for name, why in source.left_out
            ),
            (
                {"identity": known[i], "images": int(classes.count_C[i]), "reason": reason}
                for i in few
            ),
        ),
        report=lambda written: write_report(out, written, classes.names, left_out, facts),
    )


@dataclass(frozen=True)
class _Classes:
    """Which identities become classes of the dataset."""

    names: list[str]
    """The identity of each class."""
    class_N: NDArray[np.int32]
    """The class of each image; -1 where its identity is left out."""
    count_C: NDArray[np.int64]
    """The number of images of each identity, left out or not."""
    left_out: list[int]
    """The identities that have images, but too few."""


def _assign_classes(
    known: Sequence[str], identity_N: NDArray[np.int64], min_images: int, seed: int
) -> _Classes:
    """Give class ids in seeded random order to the identities with enough images."""
    count_C = np.bincount(identity_N, minlength=len(known))
    kept = np.flatnonzero(count_C >= min_images)
    class_of = np.full(len(known), -1)
    class_of[kept] = rng.permutation(rng.key(seed, rng.Stream.CONVERT_CLASSES), len(kept)).argsort()
    names = [known[i] for i in kept[class_of[kept].argsort()]]
    left_out: list[int] = np.flatnonzero((count_C > 0) & (count_C < min_images)).tolist()
    return _Classes(names, class_of[identity_N].astype(np.int32), count_C, left_out)


def _check_arguments(paths: Sequence[Path], out: Path, edit: Edit) -> None:
    if edit.align and edit.resize:
        raise UserError(
            "--align makes images of 112x112 and --resize others, which fit no template; leave one "
            "out"
        )
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("a source is given twice; name each once")
    around = (out.resolve(), *out.resolve().parents)
    if inside := next((path for path in paths if path.resolve() in around), None):
        raise UserError(f"{out}: lies inside the source {inside}; write the dataset elsewhere")
    refuse_foreign(out)


def _facts(
    sources: Sequence[Source], edit: Edit, seed: int, min_images: int, identity_map: Path | None
) -> dict[str, object]:
    """What opens the report."""
    described = [
        {
            "path": str(source.path),
            "kind": source.kind,
            "images": len(source.label_N),
            "identities": len(source.identities),
            "left_out": source.left_out.by_reason(),
        }
        for source in sources
    ]
    options = {
        **asdict(edit),
        "seed": seed,
        "min_images": min_images,
        "identity_map": identity_map and str(identity_map),
    }
    notes = [note for source in sources for note in source.notes]
    return {"sources": described, "options": options, "notes": notes}


def _what_decides(
    sources: Sequence[Source],
    classes: _Classes,
    points: Landmarks | None,
    edit: Edit,
    seed: int,
) -> dict[str, object]:
    """All that decides the bytes of the shards: a folder is completed only by the same."""
    listing = "".join(classes.names).encode(errors="surrogateescape") + classes.class_N.tobytes()
    return {
        "sources": [[source.kind, source.digest] for source in sources],
        "classes_sha256": hashlib.sha256(listing).hexdigest(),
        "landmarks_sha256": points and points.sha256,
        "seed": seed,
        **asdict(edit),
    }
