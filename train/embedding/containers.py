"""Images in zips, MXNet records, parquet files and lists: the sources that datasets are made of."""

from collections.abc import Mapping
from pathlib import Path

from manyfaces.data.sources.recognise import recognise
from manyfaces.data.sources.source import Place
from manyfaces.train.embedding.source import PlacedImages, printable


class ContainedImages(PlacedImages):
    """The images of a source of `manyfaces.data.sources`, which need no identities. Raises
    `UserError` as `recognise` does."""

    def __init__(self, path: Path, options: Mapping[str, object]) -> None:
        self._source = recognise(path, options, needs_labels=False)
        self.where, self.digest = printable(str(path)), self._source.digest
        self.reads_side_by_side = not self._source.in_sequence
        self.notes = list(self._source.notes)
        if len(self._source.left_out):
            self.notes.append(f"{path}: left out: {self._source.left_out}")

    def __len__(self) -> int:
        return len(self._source.label_N)

    def place(self, row: int) -> Place:
        return self._source.place(row)

    def key(self, row: int) -> str:
        return self._source.key(row)

    def identity(self, row: int) -> str | None:
        return self._source.identities[self._source.label_N[row]] or None
