"""Images at a URL: one image, a folder of them, a dataset, or one file that holds many."""

import hashlib
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from manyfaces.configs.errors import UserError
from manyfaces.configs.redact import redact
from manyfaces.data.dataset.dataset import open_part
from manyfaces.data.dataset.manifest import MANIFEST
from manyfaces.data.sources.file_names import reason_against
from manyfaces.data.sources.url_at import opened
from manyfaces.train.embedding.files import UrlImages
from manyfaces.train.embedding.shards import DatasetImages
from manyfaces.train.embedding.source import ImageSource

_HOLDS_MANY = {".tar", ".zip", ".rec", ".parquet", ".txt", ".lst", ".tsv", ".csv", ".list"}
"""Endings of files that are fetched before they are read."""


def is_image(url: str) -> bool:
    """Whether the URL is of one image file, by its name."""
    return reason_against(url.rpartition("/")[2]) is None


def holds_many(url: str) -> bool:
    """Whether the URL is of one file that holds many images, or names them."""
    return Path(url.rpartition("/")[2]).suffix.lower() in _HOLDS_MANY


def fetched_file(url: str, to: Path) -> Path:
    """The file at the URL, fetched to a folder unless it is there already. Raises `UserError`."""
    folder, _, name = url.rpartition("/")
    file = to / hashlib.sha256(redact(url).encode()).hexdigest()[:16] / name
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{name}.{uuid.uuid4().hex[:8]}")
        opened(folder).fetch(name, part, None, None)
        part.replace(file)
    return file


def open_folder(url: str) -> ImageSource:
    """The dataset at a URL, or all images below it. Raises `UserError` for one without either, and
    for shards that have no index."""
    remote = opened(url)
    if remote.read_if_there(MANIFEST) is not None:
        return DatasetImages(open_part(url))
    files: Mapping[str, int | None] = remote.tree("")
    if any(name.endswith(".tar") for name in files):
        raise UserError(
            f"{url}: holds .tar shards without an index; run `manyfaces data index {url} --out "
            "FOLDER`, and give FOLDER"
        )
    images = UrlImages(url)
    for name, size in files.items():
        if reason_against(name) is None:
            images.add(name, size or 0)
    if not len(images):
        raise UserError(
            f"{url}: no images found there; give the URL of a dataset, of an image, or of a folder "
            "of images that the store lists"
        )
    return images


def named_urls(urls: Iterable[str]) -> list[UrlImages]:
    """Image files at URLs that are named one by one, together by their folders. Raises `UserError`
    for one that is named twice."""
    of_folder: dict[str, UrlImages] = {}
    seen: set[str] = set()
    for url in urls:
        if url in seen:
            raise UserError(f"{url}: is named twice; name it once")
        seen.add(url)
        folder, _, name = url.rpartition("/")
        of_folder.setdefault(folder, UrlImages(folder)).add(name, 0)
    return list(of_folder.values())
