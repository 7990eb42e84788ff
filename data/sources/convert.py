"""Sources in: folders, lists, zips, records, parquet become one dataset; which images of whom,
under which class ids, in which order."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs import rng
from manyfaces.configs.schema import UserError
from manyfaces.data.dataset.index import Manifest
from manyfaces.data.dataset.names import short_names
from manyfaces.data.dataset.write import Item, Items, refuse_foreign, write_dataset
from manyfaces.data.sources import synthetic
from manyfaces.data.sources.align import TEMPLATE_NAME, Landmarks
from manyfaces.data.sources.edit import Edit, Wanted
from manyfaces.data.sources.report import write_report
from manyfaces.data.sources.source import Source, recognise

_CLASSES, _IMAGES, _GROUPS = 11, 12, 13  # streams of the counter
# over which images that can only be read in groups are mixed; each group is read once for each of
# them
WINDOW_SHARDS = 8
_KEEP = Edit()
_UNREADABLE = re.compile(r"[^A-Za-z0-9_/-]")

Ints = NDArray[np.int64]


def convert(
    paths: Sequence[Path],
    out: Path,
    *,
    seed: int = 0,
    processes: int | None = None,
    shard_images: int = 8192,
    root: Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    edit: Edit = _KEEP,
    landmarks: Path | None = None,
    min_images: int = 1,
    identity_map: Path | None = None,
) -> Manifest:
    """Convert what the paths hold (`sources.recognise`) into one dataset, with a report beside it.

    Class ids are in seeded random order, so that a block of ids is a random set of people; names go
    to `identities.txt`, line = class id. Images are in seeded random order over all shards.
    Identities of several sources are named `source/identity` and stay distinct, unless
    `identity_map` (lines `name<TAB>merged name`) joins them. Identities with fewer than
    `min_images` images are left out. Raises `UserError`.
    """
    if edit.align and edit.resize:
        raise UserError(
            "--align makes images of 112x112 and --resize others, which fit no template; leave one "
            "out"
        )
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("a source is given twice; name each once")
    if inside := next(
        (path for path in paths if path.resolve() in (out.resolve(), *out.resolve().parents)), None
    ):
        raise UserError(f"{out}: lies inside the source {inside}; write the dataset elsewhere")
    refuse_foreign(out)
    sources = [recognise(path, root, image_column, label_column) for path in paths]
    known, identity_N = merge(sources, identity_map)
    points = Landmarks(landmarks) if landmarks else None
    count_C = np.bincount(identity_N, minlength=len(known))
    kept = np.flatnonzero(count_C >= max(min_images, 1))
    if not len(kept):
        raise UserError(
            f"{', '.join(map(str, paths))}: no identity has --min-images {min_images}; the most "
            f"images of one are {count_C.max()}"
        )
    class_of = np.full(len(known), -1)
    class_of[kept] = rng.permutation(rng.key(seed, _CLASSES), len(kept)).argsort()
    names = [known[i] for i in kept[class_of[kept].argsort()]]
    class_N = class_of[identity_N].astype(np.int32)
    rows = np.flatnonzero(class_N >= 0)
    items = Chosen(
        sources, class_N, reading_order(sources, rows, seed, WINDOW_SHARDS * shard_images), points
    )

    few: list[int] = np.flatnonzero((count_C > 0) & (count_C < min_images)).tolist()
    reason = f"of an identity with fewer than {min_images} images"
    described = [
        {
            "path": str(s.path),
            "kind": s.kind,
            "images": len(s.label_N),
            "identities": len(s.identities),
        }
        for s in sources
    ]
    options = {
        **asdict(edit),
        "seed": seed,
        "min_images": min_images,
        "identity_map": identity_map and str(identity_map),
    }
    facts = {
        "sources": described,
        "options": options,
        "notes": [note for source in sources for note in source.notes],
    }
    left_out = {reason: int(count_C[few].sum())} if few else {}
    listing = hashlib.sha256(
        "".join(names).encode(errors="surrogateescape") + class_N.tobytes()
    ).hexdigest()
    plan = {
        "sources": [[s.kind, s.digest] for s in sources],
        "classes_sha256": listing,
        "landmarks_sha256": points and points.sha256,
    }
    return write_dataset(
        out,
        items,
        edit,
        names,
        source={**plan, "seed": seed, **asdict(edit)},
        shard_images=shard_images,
        processes=processes,
        template=TEMPLATE_NAME if edit.align else None,
        dropped_before=(
            {"identity": known[i], "images": int(count_C[i]), "reason": reason} for i in few
        ),
        report=lambda written: write_report(out, written, names, left_out, facts),
    )


class Chosen:
    """The images to be written, in order, as arrays; a shard's items are made when it is about to
    be written."""

    def __init__(
        self,
        sources: Sequence[Source],
        class_N: NDArray[np.int32],
        order: Ints,
        points: Landmarks | None,
    ) -> None:
        self.sources, self.class_N, self.order, self.points = sources, class_N, order, points
        self.starts = np.cumsum([0] + [len(source.label_N) for source in sources])
        self.labels = short_names([source.path for source in sources])
        # Images that lie in sequence are read in sequence: a shard is sorted by place, training
        # shuffles over shards anyway.
        self.sort = any(source.in_sequence for source in sources)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, part: slice) -> list[Item]:
        rows = self.order[part]
        return [self._item(row) for row in (np.sort(rows) if self.sort else rows).tolist()]

    def _item(self, row: int) -> Item:
        number = int(np.searchsorted(self.starts, row, "right")) - 1
        source, local = self.sources[number], row - int(self.starts[number])
        place, name = source.place(local), source.name(local)
        points = (
            self.points.find(name, f"{self.labels[number]}/{name}", str(place))
            if self.points
            else None
        )
        return Item(Wanted(place, points), _key(name, row), int(self.class_N[row]))


def merge(sources: Sequence[Source], identity_map: Path | None) -> tuple[list[str], Ints]:
    """Names of all identities, and the identity of each image of all sources, one after the other.
    Raises `UserError`."""
    joined = _read_map(identity_map) if identity_map else {}
    codes: dict[str, int] = {}
    columns, unknown = [], set(joined)
    for label, source in zip(short_names([s.path for s in sources]), sources, strict=True):
        own = (
            source.identities
            if len(sources) == 1
            else [f"{label}/{name}" for name in source.identities]
        )
        if bad := next((name for name in own if not name.isprintable()), None):
            raise UserError(
                f"{source.path}: identity {bad!r} cannot be a line of identities.txt; rename it"
            )
        unknown -= set(own)
        columns.append(
            np.array([codes.setdefault(joined.get(name, name), len(codes)) for name in own])[
                source.label_N
            ]
        )
    if unknown:
        raise UserError(
            f"{identity_map}: no identity {min(unknown)!r} in the sources ({len(unknown)} such "
            f"lines); known is {next(iter(codes))!r}"
        )
    return list(codes), np.concatenate(columns)


def reading_order(sources: Sequence[Source], rows: Ints, seed: int, window: int) -> Ints:
    """`rows` (of all sources, one after the other) in seeded random order.

    Where a source's images can only be read in groups: groups in random order, images shuffled over
    windows of `window` images.
    """
    if all(source.group_N is None for source in sources):
        return rows[rng.permutation(rng.key(seed, _IMAGES), len(rows))]
    columns, base = [], 0
    for source in sources:
        groups = np.arange(len(source.label_N)) if source.group_N is None else source.group_N
        columns.append(base + groups.astype(np.int64))
        base = int(columns[-1][-1]) + 1
    group_R = np.concatenate(columns)[rows]
    order_G = rng.permutation(rng.key(seed, _GROUPS), base)
    size_G = np.bincount(group_R, minlength=base)[order_G]
    window_G = np.empty(base, np.int64)
    window_G[order_G] = (np.cumsum(size_G) - size_G) // window
    words = rng.words(rng.key(seed, _IMAGES), np.arange(len(rows), dtype=np.uint64))
    return rows[np.lexsort((words, window_G[group_R]))]


def _read_map(path: Path) -> dict[str, str]:
    joined: dict[str, str] = {}
    for number, line in enumerate(
        path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines(), 1
    ):
        if not line.strip():
            continue
        name, _, merged = line.partition("\t")
        if not name.strip() or not merged.strip() or "\t" in merged:
            raise UserError(
                f"{path}:{number}: expected `source identity name<TAB>merged name`, got "
                f"{line[:80]!r}"
            )
        if name.strip() in joined:
            raise UserError(
                f"{path}:{number}: {name.strip()!r} stands in a line above already; each identity "
                "has one line"
            )
        joined[name.strip()] = merged.strip()
    return joined


class _Synthetic:
    """Made identities as items."""

    def __init__(self, num_identities: int, images_each: int, seed: int) -> None:
        self.images_each, self.seed = images_each, seed
        self.order = rng.permutation(rng.key(seed, _IMAGES), num_identities * images_each)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, part: slice) -> list[Item]:
        numbers = (divmod(n, self.images_each) for n in self.order[part].tolist())
        return [
            Item((self.seed, identity, image), f"{identity:08d}/{image:04d}", identity)
            for identity, image in numbers
        ]


def synthesise(
    out: Path,
    num_identities: int,
    images_each: int,
    *,
    seed: int = 0,
    processes: int | None = None,
    shard_images: int = 8192,
) -> Manifest:
    """A dataset of made identities; the same bytes anywhere. Raises `UserError` for fewer than two
    identities or no images."""
    if num_identities < 2 or images_each < 1:
        raise UserError(
            f"{num_identities} identities of {images_each} images: at least 2 identities of 1 "
            "image are needed"
        )
    items: Items = _Synthetic(num_identities, images_each, seed)
    names = [f"synthetic-{seed}-{n:08d}" for n in range(num_identities)]
    facts: dict[str, object] = {"source": "synthetic", "seed": seed, "images_each": images_each}
    return write_dataset(
        out,
        items,
        _synthesise_one,
        names,
        source=facts,
        shard_images=shard_images,
        processes=processes,
    )


def _synthesise_one(source: object) -> bytes:
    assert isinstance(source, tuple)
    seed, identity, image = source
    return synthetic.encode(seed, identity, image)


def _key(name: str, number: int) -> str:
    """A WebDataset key that still tells where the image came from; a key ends at its first dot, and
    100 bytes fit every tar."""
    folder, slash, file = name.rpartition("/")
    readable = _UNREADABLE.sub("_", folder + slash + (file.rpartition(".")[0] or file))
    return f"{readable[-80:].lstrip('/')}-{number}"
