"""What a file's name says before it is opened: an image, a format that is not read, or something
that systems leave beside images; and which split it belongs to."""

import re
from collections.abc import Iterable

from manyfaces.configs.errors import UserError

IMAGE_SUFFIXES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".webp",
        ".tif",
        ".tiff",
        ".gif",
        ".avif",
        ".jp2",
        ".ppm",
        ".pgm",
        ".pnm",
    )
)
"""Formats that OpenCV decodes. The bytes decide in the end: a PNG named `.jpg` is read as well."""
_UNREAD_SUFFIXES = frozenset(
    (
        ".heic",
        ".heif",
        ".jxl",
        ".jxr",
        ".psd",
        ".svg",
        ".ico",
        ".tga",
        ".exr",
        ".hdr",
        ".raw",
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".orf",
    )
)
_CONTAINER_SUFFIXES = frozenset(
    (
        ".zip",
        ".tar",
        ".gz",
        ".tgz",
        ".bz2",
        ".xz",
        ".zst",
        ".7z",
        ".rar",
        ".rec",
        ".parquet",
        ".arrow",
        ".tfrecord",
        ".lmdb",
        ".mdb",
        ".bin",
        ".h5",
        ".hdf5",
        ".npz",
        ".npy",
        ".pkl",
        ".mp4",
        ".avi",
        ".mov",
    )
)
_SYSTEM_FOLDERS = frozenset(
    (
        "__macosx",
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "@sharebin",
        "@tmp",
        "#recycle",
        "#snapshot",
        "~snapshot",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "lost+found",
        "network trash folder",
        "temporary items",
        "thumbnails",
        "thumbs",
        "_thumbs",
        "__pycache__",
    )
)
SYSTEM_FOLDER = "in a hidden, system or thumbnail folder"
_SPLITS = {
    word: split
    for split, words in {
        "train": "train training",
        "validation": "validation valid val dev",
        "test": "test testing eval evaluation",
    }.items()
    for word in words.split()
}
_SHARD = re.compile(r"(?P<split>.+)-\d+-of-(?P<count>\d+)(?:[-.].*)?")
_WORD = re.compile(r"[a-z]+")


def is_system_folder(name: str) -> bool:
    """Say whether a folder of this name is one that a system makes for itself: it is no person's,
    and nothing in it is an image of the source."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def reason_against(name: str) -> str | None:
    """Why a file of this name, relative to its source, is not taken for an image of it; None where
    it is one."""
    *folders, file = name.split("/")
    if ".." in folders:
        return "a name with .. in it"
    if any(map(is_system_folder, folders)):
        return SYSTEM_FOLDER
    if file.startswith("."):
        return "a hidden file (._ files are made by macOS)"
    suffix = "." + file.rpartition(".")[2].strip().lower()
    if suffix in IMAGE_SUFFIXES and len(file) > len(suffix):
        return None
    if suffix in _UNREAD_SUFFIXES:
        return f"an image format that is not read ({suffix})"
    if suffix in _CONTAINER_SUFFIXES:
        return f"an archive or container within the source, which is not opened ({suffix})"
    return "no image by its name"


def split_of_folder(name: str) -> str:
    """The split that a folder of this name holds: train, validation or test; "" for no split."""
    return _SPLITS.get(name.lower(), "")


def split_of_file(name: str) -> str:
    """The split of a file, by its name relative to its source as Hugging Face reads it:
    `train-00000-of-00002.parquet`, `val.parquet`, `data/test/0000.parquet`; "" for none."""
    *folders, file = name.split("/")
    if told := _SHARD.fullmatch(file):
        return _SPLITS.get(told["split"].lower(), told["split"])
    stem = file.rpartition(".")[0] or file
    found = [_SPLITS[word] for word in _WORD.findall(stem.lower()) if word in _SPLITS]
    return next(iter(found + [split for split in map(split_of_folder, folders) if split]), "")


def shard_count(name: str) -> int | None:
    """How many files there are, where a file's name tells it: `train-00000-of-00002.parquet`."""
    told = _SHARD.fullmatch(name.rpartition("/")[2])
    return int(told["count"]) if told else None


def wanted_splits(where: object, there: Iterable[str], wanted: str | None) -> frozenset[str]:
    """The splits to be read of those that are there ("" is no split): the only one, or those that
    `wanted` names as `train+validation`. Raises `UserError` where they are to be named, and for one
    that is not there."""
    found = frozenset(there)
    shown = ", ".join(sorted(filter(None, found))) or "none"
    if wanted is None:
        if len(found) > 1:
            others = " beside files of no split" if "" in found else ""
            first = "train" if "train" in found else min(filter(None, found))
            raise UserError(
                f"{where}: holds the splits {shown}{others}; name one with --split {first}, or "
                "several with --split A+B"
            )
        return found
    named = wanted_names(wanted)
    if missing := sorted(name for name in named if name not in found or not name):
        raise UserError(f"{where}: no split {missing[0]!r}; the splits are: {shown}")
    return named


def wanted_names(wanted: str | None) -> frozenset[str]:
    """The splits that `train+validation` names; none for None."""
    if wanted is None:
        return frozenset()
    return frozenset(_SPLITS.get(word.lower(), word) for word in wanted.split("+"))
