"""Parquet files with image bytes and a label column, as Hugging Face datasets export them."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from manyfaces.configs.errors import UserError
from manyfaces.data.sources.file_names import (
    shard_count,
    split_of_file,
    split_of_folder,
    wanted_names,
    wanted_splits,
)
from manyfaces.data.sources.parquet_rows import RowAt, read_rows
from manyfaces.data.sources.source import SPLIT, Claim, Option, Source, files_below

_SHARD = re.compile(r"(?P<run>.+)-\d+-of-\d+")
"""The name of one of the files that Hugging Face's `datasets` has split a table into."""


class Parquet(Source):
    """The images of parquet files. Images are named by their path in the dataset that they come
    from, else by file and row.

    Raises `UserError` as `read_rows` does, for several splits where none was named, and for files
    that are not all there.
    """

    kind, described = "parquet", "a .parquet file or a folder of them"
    precedence, part_name, may_lack_labels = 30, _SHARD, True
    options = (
        SPLIT,
        Option("image_column", str, "image column of parquet files, where it is not clear", "NAME"),
        Option("label_column", str, "label column of parquet files, where it is not clear", "NAME"),
    )

    @classmethod
    def claims(cls, path: Path) -> list[Claim]:
        # A repository of Hugging Face has `data/train-00000-of-00002.parquet`, or
        # `CONFIGURATION/train/0000.parquet` for each of its configurations.
        of_folder: dict[str, list[Path]] = {}
        for file in files_below(path, ".parquet"):
            above = [] if file == path else file.relative_to(path).parts[:-1]
            folder = "/".join(part for part in above if not split_of_folder(part))
            of_folder.setdefault(folder, []).append(file)
        if len(of_folder) == 1:
            return [Claim(files) for files in of_folder.values()]
        return [Claim(files, f"{folder or path}/") for folder, files in of_folder.items()]

    def __init__(
        self,
        path: Path,
        files: Sequence[Path],
        image_column: str | None = None,
        label_column: str | None = None,
        split: str | None = None,
        *,
        needs_labels: bool = True,
    ) -> None:
        files = self._of_split(path, files, split)
        found = read_rows(files, image_column, label_column, needs_labels=needs_labels)
        self.path, self._found, self.identities = path, found, found.identities
        self.label_N, self.group_N = found.label_N, found.group_N
        sizes = "\n".join(f"{file.name} {file.stat().st_size}" for file in files)
        listing = hashlib.sha256(sizes.encode(errors="surrogateescape"))
        listing.update(found.label_N.tobytes() + found.image_column.encode())
        self.digest = listing.hexdigest()

    def _of_split(self, path: Path, files: Sequence[Path], wanted: str | None) -> list[Path]:
        """The files of the split that is to be read, all of them. Raises `UserError`."""
        if not path.is_dir():
            _require_split(files, wanted)
            return list(files)
        names = {file: str(file.relative_to(path)) for file in files}
        split_of = {file: split_of_file(name) for file, name in names.items()}
        taken = wanted_splits(path, split_of.values(), wanted)
        for file, split in split_of.items():
            if split not in taken:
                self.left_out.add(names[file], f"of the split {split or 'without a name'}")
        kept = [file for file in files if split_of[file] in taken]
        for split in taken:
            counts = [shard_count(names[file]) for file in kept if split_of[file] == split]
            expected = max((count for count in counts if count is not None), default=len(counts))
            if len(counts) != expected or len(set(counts)) > 1:
                raise UserError(
                    f"{path}: {len(counts)} files of the split {split}, whose names say that there "
                    f"are {expected}; fetch the others, remove what is of another export, or name "
                    "those that you want one by one"
                )
        return kept

    def place(self, row: int) -> RowAt:
        group = int(self._found.group_N[row])
        file, number = self._found.place_G[group]
        row_in_group = row - int(self._found.first_G[group])
        return RowAt(str(file), number, row_in_group, self._found.image_column)

    def name(self, row: int) -> str:
        return self._found.names[row] or self.key(row)

    def key(self, row: int) -> str:
        """Images of several folders may have one path in the dataset that they come from: where
        the image is tells them apart."""
        place = self.place(row)
        return f"{Path(place.path).stem}/{place.group}/{place.row}"


def _require_split(files: Sequence[Path], wanted: str | None) -> None:
    """Raise `UserError` for a file that was named and is of another split than what is wanted."""
    if wanted is None:
        return
    for file in files:
        split = split_of_file(f"{file.absolute().parent.name}/{file.name}")
        if split not in wanted_names(wanted):
            is_of = f"of the split {split}" if split else "of no split by its name"
            raise UserError(
                f"{file}: is {is_of}, and --split says {wanted}; leave --split out, or name a file "
                "of that split"
            )
