"""The samples of one shard: which members of the tar make them, what is refused, and what is left
out."""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.label import MOST_IDENTITIES, parse_cls, parse_json
from manyfaces.data.dataset.sample import JPEG_SUFFIXES, LABEL_SUFFIXES, TAR_BLOCK, Sample

LeaveOut = Callable[[str, str], None]
"""Is told why a member is left out, and its name."""

_OTHER_IMAGES = {"png", "webp", "bmp", "gif", "tif", "tiff", "jp2", "avif", "heic", "jxl"}
_OTHER_IMAGES |= {"jpe", "jfif"}
_SYSTEM_FOLDERS = {"__MACOSX", "@eaDir"}
"""These are fewer than a source of files has: an image in `thumbs/` that has a label is somebody's
sample, and our own shards have the names of foreign images in their keys."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
TORN = (
    *(tarfile.TarError, EOFError, OSError, ValueError),
    *(OverflowError, RecursionError, MemoryError),
)
"""What `tarfile` raises for headers that say anything."""
_MOST_LABEL_BYTES = 1 << 24
_MEMBERS_SHOWN = 4
_NO_SAMPLE = "without an image or a label of the same key"
_PICTURE_ALONE = "of another image format than JPEG and without a label"


@dataclass
class _Group:
    """Neighbouring members of one key."""

    key: str
    image: tuple[int, int] | None = None
    """Offset and size."""
    labels: dict[str, int] = field(default_factory=dict)
    """By the suffix of the member that says it."""
    unlabelled: bytes | None = None
    """The content of a `.json` without a label that can be used."""
    by_suffix: dict[str, str] = field(default_factory=dict)
    """Names of the image and the labels."""
    others: list[str] = field(default_factory=list)
    """Names of members that are neither image nor label."""

    @property
    def is_of_a_sample(self) -> bool:
        """Whether it has an image, a label or an image of another format."""
        return bool(self.by_suffix or self._ends & {*JPEG_SUFFIXES, *_OTHER_IMAGES})

    @property
    def is_picture_alone(self) -> bool:
        """Whether all that it has of a sample is an image of another format, such as a mask."""
        return not self.by_suffix and not self._ends & {*JPEG_SUFFIXES, *LABEL_SUFFIXES}

    @property
    def _ends(self) -> set[str]:
        return set(map(_end, self.others))

    def shown(self) -> str:
        """Its members, for people."""
        names = [*self.by_suffix.values(), *self.others]
        more = len(names) - _MEMBERS_SHOWN
        return ", ".join(names[:_MEMBERS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _end(name: str) -> str:
    return name.rpartition(".")[2].lower()


def scan(shard: Path, leave_out: LeaveOut = lambda reason, member: None) -> Iterator[Sample]:
    """Go through the samples of one shard in file order.

    `leave_out` is told of each member that is no part of a sample. Raises `UserError` naming shard
    and key for half a sample, a key that stands twice or whose members do not lie next to each
    other, two images or labels that differ, a label that is no non-negative integer, and an image
    or label that is a link or sparse; naming the shard for a tar that is compressed, torn (between
    two members too), or has others behind its end.
    """
    kept, key = _Samples(shard, leave_out), ""
    try:
        # A name that is no UTF-8 is shown with `\xe9` in it: a lone surrogate cannot be printed.
        with tarfile.open(shard, "r:", encoding="utf-8", errors="backslashreplace") as tar:
            for group in _groups(shard, tar, leave_out):
                key = group.key
                if (sample := kept.take(group)) is not None:
                    yield sample
            require_end(shard, tar.offset, key)
    except UserError:
        raise
    except TORN as error:
        refuse_compressed(shard)
        raise UserError(
            f"{shard}: not a whole tar file after sample {key!r} ({error}); fetch or write it again"
        ) from error
    kept.refuse_halves()


class _Samples:
    """The samples of a shard so far, by their keys."""

    def __init__(self, shard: Path, leave_out: LeaveOut) -> None:
        self.shard, self.leave_out = shard, leave_out
        self.whole: set[str] = set()
        self.halves: dict[str, _Group] = {}

    def take(self, group: _Group) -> Sample | None:
        """The sample that the group is; None for one that is left out, and for half a sample,
        whose other members may come later. Raises `UserError`."""
        key = group.key
        if not group.is_of_a_sample:
            self._leave_out_all(group)
            return None
        if key in self.whole:
            raise UserError(
                f"{self.shard}: key {key!r} stands twice ({group.shown()}, after a whole sample); "
                "give each sample a key of its own"
            )
        if key in self.halves:
            self._refuse_second_half(self.halves[key], group)
        identity = self._identity(group)
        if group.image is None or identity is None:
            self.halves[key] = group
            return None
        self.whole.add(key)
        for name in group.others:
            self.leave_out("beside an image and its label", name)
        return Sample(key, *group.image, identity)

    def refuse_halves(self) -> None:
        """Raise `UserError` for half a sample. Pictures of another format for which no label came
        are left out."""
        for group in self.halves.values():
            if group.is_picture_alone:
                self._leave_out_all(group)
                continue
            missing = ".jpg" if group.image is None else ".cls or .json"
            raise UserError(
                f"{self.shard}: sample {group.key!r} has no {missing}, only {group.shown()}; every "
                "sample needs an image and a label (a key ends at the first dot of the name)"
            )

    def _leave_out_all(self, group: _Group) -> None:
        for name in group.others:
            is_picture = _end(name) in _OTHER_IMAGES
            self.leave_out(_PICTURE_ALONE if is_picture else _NO_SAMPLE, name)

    def _refuse_second_half(self, first: _Group, second: _Group) -> None:
        shown = f"{first.shown()} and, after others, {second.shown()}"
        if (first.image and second.image) or (first.labels and second.labels):
            raise UserError(
                f"{self.shard}: key {first.key!r} stands twice ({shown}); give each sample a key "
                "of its own"
            )
        raise UserError(
            f"{self.shard}: the members of key {first.key!r} do not lie next to each other "
            f"({shown}); write the tar with --sort=name"
        )

    def _identity(self, group: _Group) -> int | None:
        """The identity of the sample; None where it has no label."""
        if not group.labels and group.unlabelled is not None:
            raise _no_label(f"{self.shard}: sample {group.key!r}", group.unlabelled)
        if len(set(group.labels.values())) > 1:
            told = " and ".join(f"{name} {number}" for name, number in group.labels.items())
            raise UserError(
                f"{self.shard}: sample {group.key!r} has labels that differ ({told}); leave the "
                "right one"
            )
        return next(iter(group.labels.values()), None)


def _groups(shard: Path, tar: tarfile.TarFile, leave_out: LeaveOut) -> Iterator[_Group]:
    """Neighbouring members of one key, in file order. Raises `UserError` for a second image or
    label in one of them."""
    group: _Group | None = None
    for member in members(tar):
        folder, _, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        if _is_hidden(member.name):
            leave_out("hidden, or the system's", member.name)
            continue
        suffix, key = suffix.lower(), f"{folder}/{stem}" if folder else stem
        is_part = suffix in JPEG_SUFFIXES + LABEL_SUFFIXES
        if not member.isreg() or member.issparse():
            if is_part:
                raise UserError(
                    f"{shard}: sample {key!r}: {member.name} is a link, sparse or no file; write "
                    "the tar with --dereference --hard-dereference and without --sparse"
                )
            leave_out("a link, sparse or no file", member.name)
            continue
        if group is not None and key != group.key:
            yield group
            group = None
        group = group or _Group(key)
        if is_part:
            _add(group, member, suffix, tar, f"{shard}: sample {key!r}")
        else:
            group.others.append(member.name)
    if group is not None:
        yield group


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members but for folders. `tarfile` goes round in circles where a size is negative."""
    end = -1
    for member in tar:
        if member.offset <= end or member.size < 0:
            raise tarfile.ReadError(f"a size that is none, at byte {member.offset:,}")
        end = member.offset
        if not member.isdir():
            yield member


def _is_hidden(name: str) -> bool:
    *folders, file = name.split("/")
    hidden = any(folder.startswith(".") and folder not in (".", "..") for folder in folders)
    return hidden or file.startswith(".") or bool(_SYSTEM_FOLDERS & set(folders))


def _add(
    group: _Group, member: tarfile.TarInfo, suffix: str, tar: tarfile.TarFile, where: str
) -> None:
    """Add an image or a label to the group. Raises `UserError` where there is one, and for a label
    that is none."""
    kind = "jpg" if suffix in JPEG_SUFFIXES else suffix
    if (before := group.by_suffix.setdefault(kind, member.name)) is not member.name:
        raise UserError(
            f"{where} has {before} and {member.name}; give each sample a key of its own, with one "
            "image and one label"
        )
    if kind == "jpg":
        if member.size >= 2**32:
            raise UserError(f"{where}: {member.name} has {member.size:,} bytes; leave it out")
        group.image = member.offset_data, member.size
        return
    if member.size > _MOST_LABEL_BYTES:
        raise UserError(
            f"{where}: {member.name} has {member.size:,} bytes; a label has "
            f"at most {_MOST_LABEL_BYTES:,}"
        )
    file = tar.extractfile(member)
    assert file is not None
    body = file.read()
    if len(body) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    if kind == "cls":
        group.labels[member.name] = _cls_label(body, where)
    else:
        _add_json(group, member.name, body, where)


def _cls_label(body: bytes, where: str) -> int:
    try:
        number = parse_cls(body)
    except ValueError as error:
        raise _no_label(where, body) from error
    if number >= MOST_IDENTITIES:
        raise _no_label(where, body)
    return number


def _add_json(group: _Group, name: str, body: bytes, where: str) -> None:
    """Add what a `.json` says. It may stand beside a `.cls` and hold something else, so that one
    without a label is refused only where there is no other label."""
    try:
        told = parse_json(body)
    except ValueError:
        told = None
    if told is None:
        group.unlabelled = body
        return
    key, number = told
    if not 0 <= number < MOST_IDENTITIES:
        raise _no_label(where, body)
    group.labels[f"{name} {key}"] = number


def _no_label(where: str, body: bytes) -> UserError:
    return UserError(
        f"{where}: label {body[:60]!r} is not an integer in [0, {MOST_IDENTITIES}), in a .cls, or "
        'in a .json under "identity", "label" or "cls"; number the identities from 0'
    )


def require_end(shard: Path, offset: int, key: str) -> None:
    """Raise `UserError` where the archive does not end at `offset`. `tarfile` takes the end of the
    file, and a header that is none, for the end of the archive, which two blocks of zeros mark;
    some writers leave out the second."""
    with shard.open("rb") as file:
        file.seek(offset)
        block, is_end = file.read(TAR_BLOCK), False
        while len(block) == TAR_BLOCK and not any(block):
            is_end, block = True, file.read(TAR_BLOCK)
        at = file.tell() - len(block)
    if not is_end:
        raise UserError(
            f"{shard}: not a whole tar file: its end is not marked after sample {key!r} (byte "
            f"{at:,}); fetch or write it again"
        )
    if any(block):
        raise UserError(
            f"{shard}: goes on behind the end of the archive, from byte {at:,}; write "
            "archives that were joined anew, as one"
        )


def refuse_compressed(shard: Path) -> None:
    """Raise `UserError` for a file that begins as a compressed one does."""
    try:
        with shard.open("rb") as file:
            head = file.read(8)
    except OSError:
        return
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise UserError(
                f"{shard}: compressed by {name}; decompress it, since samples are read at their "
                "places in a plain tar"
            )
