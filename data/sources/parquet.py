"""Parquet files with image bytes and a label column, as Hugging Face datasets export them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from manyfaces.data.sources.parquet_rows import RowAt, read_rows
from manyfaces.data.sources.source import Claim, Option, Source, files_with_suffix


class Parquet(Source):
    """The images of parquet files. Images are named by their path in the dataset that they come
    from, else by file and row. Raises `UserError` as `read_rows` does."""

    kind, described = "parquet", "a .parquet file or a folder of them"
    precedence = 30
    options = (
        Option("image_column", str, "image column of parquet files, where it is not clear", "NAME"),
        Option("label_column", str, "label column of parquet files, where it is not clear", "NAME"),
    )

    @classmethod
    def claims(cls, path: Path) -> list[Claim]:
        files = files_with_suffix(path, ".parquet")
        if not files and (path / "data").is_dir():  # a repository of Hugging Face keeps them there
            files = files_with_suffix(path / "data", ".parquet")
        return [Claim(files)] if files else []

    def __init__(
        self,
        path: Path,
        files: Sequence[Path],
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        found = read_rows(files, image_column, label_column)
        self.path, self._found, self.identities = path, found, found.identities
        self.label_N, self.group_N = found.label_N, found.group_N
        sizes = "\n".join(f"{file.name} {file.stat().st_size}" for file in files)
        listing = hashlib.sha256(sizes.encode(errors="surrogateescape"))
        listing.update(found.label_N.tobytes() + found.image_column.encode())
        self.digest = listing.hexdigest()

    def place(self, row: int) -> RowAt:
        group = int(self._found.group_N[row])
        file, number = self._found.place_G[group]
        row_in_group = row - int(self._found.first_G[group])
        return RowAt(str(file), number, row_in_group, self._found.image_column)

    def name(self, row: int) -> str:
        if name := self._found.names[row]:
            return name
        place = self.place(row)
        return f"{Path(place.path).stem}/{place.group}/{place.row}"
