"""Lists of a protocol, whatever holds them: images or ready embeddings, each with whom it shows.

A list is a folder of identity folders, a dataset of manyfaces, a text list, a CSV, any other source
that `manyfaces data convert` reads, or a file of embeddings.
"""

import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.urls import url_of
from manyfaces.data.dataset.dataset import Dataset, open_dataset
from manyfaces.data.dataset.forgotten import read_forgotten_part
from manyfaces.data.dataset.manifest import MANIFEST
from manyfaces.data.dataset.names import name_lines
from manyfaces.data.sources.file_names import reason_against
from manyfaces.data.sources.recognise import recognise
from manyfaces.data.sources.source import Dropped, Place
from manyfaces.data.store.samples import Store
from manyfaces.train.evaluation.feature_files import Features, open_features
from manyfaces.train.evaluation.result import Encoded
from manyfaces.train.protocols.columns import read_columns

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Some images or embeddings, by row, and whom each shows."""

    where: str
    identities: Sequence[str]
    """The names of the identities."""
    code_N: Ints
    """Which of the identities each row shows; -1 where that is not known."""
    name: Callable[[int], str]
    """What a row is called, for people."""
    key: Callable[[int], Hashable]
    """What tells the image of a row from those of any list."""
    read: Callable[[int], Encoded] | None = None
    """The bytes of a row's image; None for embeddings."""
    features: Features | None = None

    def __len__(self) -> int:
        return len(self.code_N)

    def only(self, rows_n: Ints) -> "Labelled":
        """The images of these rows alone."""
        read = self.read
        assert read is not None
        return Labelled(
            self.where,
            self.identities,
            self.code_N[rows_n],
            lambda row: self.name(int(rows_n[row])),
            lambda row: self.key(int(rows_n[row])),
            lambda row: read(int(rows_n[row])),
        )


def open_labelled(path: str) -> Labelled:
    """The list that a path or a URL of a dataset holds, with whom each row shows. Raises
    `UserError` for what is none, and for one without identities."""
    found = _opened(path)
    if (found.code_N < 0).any():
        row = int(np.flatnonzero(found.code_N < 0)[0])
        raise UserError(
            f"{path}: does not tell whom {found.name(row)} shows; a gallery and probes need "
            "identities"
        )
    return found


def open_distractors(path: str) -> Labelled:
    """The images that a path or a URL of a dataset holds, or embeddings, whose identities need not
    be known. Of a folder, all images at any depth are taken, and those in a folder of it are of the
    identity that this is called after. Raises `UserError` for what is none."""
    folder = Path(path)
    is_images = url_of(path) is None and folder.is_dir() and not (folder / MANIFEST).is_file()
    if not is_images or open_features(folder) is not None:
        return _opened(path)
    files = images_below(folder)
    if not files:
        raise UserError(f"{path}: no images in it")
    above = [file.partition("/")[0] if "/" in file else "" for file in files]
    return listed(path, [str(folder / file) for file in files], above)


def images_below(folder: Path) -> list[str]:
    """The images in a folder at any depth, relative to it, sorted."""
    found: list[str] = []
    for above, _, names in os.walk(folder, followlinks=True):
        relative = os.path.relpath(above, folder)
        prefix = "" if relative == "." else f"{relative}/"
        found += [prefix + name for name in names if reason_against(prefix + name) is None]
    return sorted(found)


def listed(where: str, files: Sequence[str], identities: Sequence[str]) -> Labelled:
    """Image files, and whom each shows; "" is nobody who is known."""
    codes, code_N = _coded(identities)

    def read(row: int) -> Encoded:
        try:
            return Path(files[row]).read_bytes()
        except OSError as error:
            raise UserError(f"{where}: {files[row]} cannot be read ({error.strerror})") from error

    return Labelled(where, codes, code_N, lambda row: files[row], lambda row: files[row], read)


def _opened(path: str) -> Labelled:
    where = Path(path)
    if url_of(path) is not None or (where / MANIFEST).is_file():
        return _of_dataset(open_dataset(path))
    if not where.exists():
        raise UserError(f"{path}: no such file or folder")
    features = open_features(where)
    if features is not None:
        return _of_features(features)
    if where.suffix.lower() == ".csv":
        columns = read_columns(where)
        return listed(path, columns.files, columns.identities)
    return _of_source(where)


def _of_features(features: Features) -> Labelled:
    codes, code_N = _coded(features.identities or [""] * len(features))
    names = features.names

    def name(row: int) -> str:
        return names[row] if names is not None else f"{features.where}: row {row}"

    return Labelled(
        features.where, codes, code_N, name, lambda row: (features.where, row), features=features
    )


def _of_source(path: Path) -> Labelled:
    source = recognise(path)

    def read(row: int) -> Encoded:
        try:
            return source.place(row).read()
        except (Dropped, OSError) as error:
            raise UserError(f"{path}: {source.name(row)}: {error}") from error

    def key(row: int) -> Hashable:
        place: Place = source.place(row)
        return (
            str(Path(str(place)).absolute()) if source.kind in ("folder", "list") else (path, row)
        )

    label_N = source.label_N.astype(np.int64)
    return Labelled(str(path), source.identities, label_N, source.name, key, read)


def _of_dataset(dataset: Dataset) -> Labelled:
    """All images of a dataset but those that are forgotten."""
    part = dataset.part
    names = [line.decode(errors="replace").rstrip("\n") for line in name_lines(dataset)]
    rows_N = np.arange(part.manifest.num_images)
    rows_N = rows_N[~read_forgotten_part(part).mask(rows_N, part.identity_N)]
    store = Store(part)
    return Labelled(
        part.where,
        names or [str(number) for number in range(part.manifest.num_identities)],
        part.labels(rows_N),
        lambda row: part.name(int(rows_N[row])),
        lambda row: (part.where, int(rows_N[row])),
        lambda row: store.read([int(rows_N[row])])[0],
    )


def _coded(identities: Sequence[str]) -> tuple[list[str], Ints]:
    codes: dict[str, int] = {}
    code_N = [codes.setdefault(each, len(codes)) if each else -1 for each in identities]
    return list(codes), np.array(code_N, np.int64)
