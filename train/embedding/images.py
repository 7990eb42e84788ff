"""All images that a person has named, from whatever sources, as one sequence of rows."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from manyfaces.configs.errors import UserError
from manyfaces.configs.urls import url_of
from manyfaces.data.dataset.dataset import open_part
from manyfaces.data.dataset.manifest import MANIFEST
from manyfaces.data.sources.file_names import reason_against
from manyfaces.data.sources.folder import Folder
from manyfaces.data.sources.source import files_with_suffix, source_kinds
from manyfaces.train.embedding.containers import ContainedImages
from manyfaces.train.embedding.files import FolderImages, named_files
from manyfaces.train.embedding.shards import DatasetImages, TarImages
from manyfaces.train.embedding.source import Image, ImageSource, printable
from manyfaces.train.embedding.urls import (
    fetched_file,
    holds_many,
    is_image,
    named_urls,
    open_folder,
)

EXPECTED = (
    "expected image files, folders of images, datasets, tars, zips, parquet files, MXNet .rec "
    "files, text lists (`path` or `path<TAB>label` lines), or URLs of these"
)
_TAR = re.compile(r"\.(tar|tar\.(gz|bz2|xz|zst)|tgz)$", re.IGNORECASE)
_IMAGE_BEGINS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


class Images:
    """The images of several sources, one after the other."""

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.sources = sources
        self._starts = np.cumsum([0] + [len(source) for source in sources])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, rows: range) -> list[tuple[ImageSource, Image]]:
        """The images of these rows of all, each with its source, as `ImageSource.read` gives
        them."""
        found: list[tuple[ImageSource, Image]] = []
        for source, start in zip(self.sources, self._starts.tolist(), strict=False):
            first, end = max(rows.start - start, 0), min(rows.stop - start, len(source))
            if first < end:
                found.extend((source, image) for image in source.read(range(first, end)))
        return found

    def close(self) -> None:
        """End what is fetched in the background."""
        for source in self.sources:
            source.close()


def open_images(words: Sequence[str], options: Mapping[str, object], fetched: Path) -> Images:
    """The images that the words name, each a path or a URL.

    `options` holds what the kinds of source take, as for `recognise`. Files at a URL that hold many
    images are fetched to the folder `fetched`. Raises `UserError` for what is not there, holds no
    images, or is named twice.
    """
    sources: list[ImageSource] = []
    files: list[Path] = []
    urls: list[str] = []
    for word in words:
        if (url := url_of(word)) is not None:
            if is_image(url):
                urls.append(url)
            else:
                sources.append(open_url(url, options, fetched))
            continue
        path = Path(word).expanduser()
        if path.is_file() and _is_image(path):
            files.append(path)
        else:
            sources.append(open_path(path, options))
    sources += [*named_files(files), *named_urls(urls)]
    _refuse_twice(sources)
    return Images(sources)


def open_url(url: str, options: Mapping[str, object], fetched: Path) -> ImageSource:
    """The images at a URL that is not of a single image. Raises `UserError`."""
    if not holds_many(url):
        return open_folder(url)
    source = open_path(fetched_file(url, fetched), options)
    source.where = printable(url)
    return source


def open_path(path: Path, options: Mapping[str, object]) -> ImageSource:
    """The images of a path that is not a single image. Raises `UserError`."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; {EXPECTED}")
    if path.is_file():
        return TarImages(path, [path]) if _TAR.search(path.name) else _contained(path, options)
    if (path / MANIFEST).is_file():
        return DatasetImages(open_part(path))
    if tars := files_with_suffix(path, ".tar"):
        return TarImages(path, tars)
    kinds = [kind for kind in source_kinds() if kind is not Folder]
    if any(claim.certain for kind in kinds for claim in kind.claims(path)):
        return _contained(path, options)
    return FolderImages(path)


def _contained(path: Path, options: Mapping[str, object]) -> ImageSource:
    if path.is_file() and not any(kind.claims(path) for kind in source_kinds()):
        raise UserError(f"{path}: no images found in it; {EXPECTED}")
    return ContainedImages(path, options)


def _is_image(path: Path) -> bool:
    """Whether a file is an image, by its name or by how it begins."""
    if reason_against(path.name) is None:
        return True
    with path.open("rb") as file:
        return file.read(8).startswith(_IMAGE_BEGINS)


def _refuse_twice(sources: Sequence[ImageSource]) -> None:
    """Raise `UserError` where two sources are one, or the folder of one lies in that of another."""
    seen: set[str] = set()
    folders = {Path(each.where).resolve() for each in sources if isinstance(each, FolderImages)}
    for source in sources:
        if source.where in seen:
            raise UserError(f"{source.where}: its images are named twice; name them once")
        seen.add(source.where)
        if source.in_files and url_of(source.where) is None:
            inside = Path(source.where).resolve()
            own = isinstance(source, FolderImages)
            around = [*inside.parents] if own else [inside, *inside.parents]
            if (outer := next((each for each in around if each in folders), None)) is not None:
                raise UserError(
                    f"{source.where}: lies in {outer}, which is named too; name one of them"
                )
