"""Images in shards: a dataset of ours, by its index, and the tars of others, with labels or
without."""

import hashlib
import io
import tarfile
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.forgotten import read_forgotten_part
from manyfaces.data.dataset.label import parse_cls, parse_json
from manyfaces.data.dataset.names import Names, open_names
from manyfaces.data.dataset.part import Part
from manyfaces.data.dataset.sample import LABEL_SUFFIXES
from manyfaces.data.dataset.scan import TORN, members, refuse_compressed, require_end
from manyfaces.data.limits import MOST_BYTES
from manyfaces.data.sources.file_names import reason_against
from manyfaces.data.sources.left_out import LeftOut
from manyfaces.data.sources.read_at import read_at
from manyfaces.data.sources.source import TOO_MANY_BYTES, Dropped, Place
from manyfaces.data.sources.text_column import TextColumn
from manyfaces.data.store.samples import Store
from manyfaces.train.embedding.source import Image, ImageSource, PlacedImages, printable

_SHARDS_AHEAD = 4
_MOST_LABEL_BYTES = 1 << 20


class DatasetImages(ImageSource):
    """The samples of a dataset, by the rows of its index, without those that are forgotten, whose
    bytes are not read. Keys are `SHARD:KEY`."""

    def __init__(self, part: Part) -> None:
        self.where, self._part, self._store = part.where, part, Store(part)
        self._forgotten = read_forgotten_part(part)
        listing = hashlib.sha256(part.manifest.fingerprint.encode())
        listing.update(self._forgotten.samples.tobytes() + self._forgotten.identities.tobytes())
        self.digest = listing.hexdigest()
        if told := self._forgotten.in_words():
            self.notes = [f"{self.where}: forgotten, and left out: {told}"]
        with open_names(part) or io.BytesIO() as file:
            self._names = Names.parse(file.read())

    def __len__(self) -> int:
        return self._part.manifest.num_images

    def read(self, rows: range) -> list[Image]:
        rows_N = np.arange(rows.start, rows.stop)
        rows_N = rows_N[~self._forgotten.mask(rows_N, self._part.identity_N[rows_N])]
        if not len(rows_N):
            return []
        shards = np.unique(self._part.shard_N[rows_N]).astype(np.int64)
        ahead = np.arange(shards[-1] + 1, len(self._part.manifest.shards))[:_SHARDS_AHEAD]
        self._store.prefetch([shards, ahead])
        blobs = self._store.read(rows_N)
        keys = self._part.keys(rows_N)
        return [
            Image(row, printable(key), self._identity(row), blob)
            for row, key, blob in zip(rows_N.tolist(), keys, blobs, strict=True)
        ]

    def close(self) -> None:
        self._store.close()

    def _identity(self, row: int) -> str:
        number = int(self._part.identity_N[row])
        return printable(self._names[number]) if number < len(self._names) else str(number)


class MemberAt:
    """The place of an image that is one member of a plain tar."""

    def __init__(self, path: str, name: str, offset: int, size: int) -> None:
        self.path, self.name, self.offset, self.size = path, name, offset, size

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"

    def read(self) -> bytes:
        if self.size > MOST_BYTES:
            raise Dropped(TOO_MANY_BYTES)
        return read_at(self.path, self.offset, self.size)


class TarImages(PlacedImages):
    """The images of tars, whatever else they hold. An image is of the identity that a `.cls` or
    `.json` of the same key says. Keys are the names of the members, of several tars `TAR:NAME`.

    Raises `UserError` for a tar that is compressed or torn, for a name that stands twice in one,
    and where there is no image.
    """

    def __init__(self, path: Path, tars: Sequence[Path]) -> None:
        self.where, self._tars = printable(str(path)), [str(tar) for tar in tars]
        self._names, self._labels = TextColumn(), TextColumn()
        self._tar_N, self._offset_N, self._size_N = array("i"), array("q"), array("q")
        left_out, listing = LeftOut(), hashlib.sha256()
        for number, tar in enumerate(tars):
            self._read_tar(number, tar, left_out)
        if not len(self):
            held = f"; it holds {left_out}" if len(left_out) else ""
            raise UserError(f"{path}: no images found in it{held}")
        twice = self._names.repeated(np.array(self._tar_N))
        if twice is not None:
            raise UserError(
                f"{self._tars[self._tar_N[twice[1]]]}: {self._names[twice[1]]} stands twice in it; "
                "give each image a name of its own"
            )
        for row in range(len(self)):
            listing.update(f"{self.place(row)} {self._size_N[row]}\n".encode(errors="replace"))
        self.digest = listing.hexdigest()
        if len(left_out):
            self.notes = [f"{path}: no images and left out: {left_out}"]

    def __len__(self) -> int:
        return len(self._names)

    def place(self, row: int) -> Place:
        tar = self._tars[self._tar_N[row]]
        return MemberAt(tar, self._names[row], self._offset_N[row], self._size_N[row])

    def key(self, row: int) -> str:
        tar = f"{Path(self._tars[self._tar_N[row]]).name}:" if len(self._tars) > 1 else ""
        return tar + self._names[row]

    def identity(self, row: int) -> str | None:
        return self._labels[row] or None

    def _read_tar(self, number: int, path: Path, left_out: LeftOut) -> None:
        """Add the images of one tar. The members of one key are neighbours, as in WebDataset."""
        key, images, label, offset = "", 0, "", 0
        try:
            with tarfile.open(path, "r:", encoding="utf-8", errors="backslashreplace") as tar:
                for member in members(tar):
                    name = member.name.removeprefix("./")
                    if (its_key := _key(name)) != key:
                        self._label(images, label)
                        key, images, label = its_key, 0, ""
                    reason = _reason_against(name, member)
                    if reason is None:
                        self._add(number, name, member)
                        images += 1
                    elif (told := _label_in(tar, member)) is not None:
                        label = told
                    else:
                        left_out.add(f"{path.name}:{name}", reason)
                self._label(images, label)
                offset = tar.offset
            require_end(path, offset, key)
        except UserError:
            raise
        except TORN as error:
            refuse_compressed(path)
            raise UserError(
                f"{path}: not a whole tar file after {key!r} ({error}); fetch or write it again"
            ) from error

    def _add(self, tar: int, name: str, member: tarfile.TarInfo) -> None:
        self._names.append(name)
        self._tar_N.append(tar)
        self._offset_N.append(member.offset_data)
        self._size_N.append(member.size)

    def _label(self, images: int, label: str) -> None:
        """Say of whom the last images are."""
        for _ in range(images):
            self._labels.append(label)


def _key(name: str) -> str:
    """The key of a member: its name up to the first dot of the file's."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _reason_against(name: str, member: tarfile.TarInfo) -> str | None:
    """Why a member is no image; None for one."""
    if (reason := reason_against(name)) is None and (not member.isreg() or member.issparse()):
        return "a link, sparse or no file"
    return reason


def _label_in(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str | None:
    """What a `.cls` or `.json` says of the images of its key: "" for one that names no identity.
    None for another member."""
    ending = member.name.rpartition(".")[2].lower()
    if ending not in LABEL_SUFFIXES or not member.isreg():
        return None
    file = tar.extractfile(member)
    body = file.read() if file is not None and member.size <= _MOST_LABEL_BYTES else b""
    try:
        if ending == "cls":
            return str(parse_cls(body))
        told = parse_json(body)
    except ValueError:
        return ""
    return "" if told is None else str(told[1])
