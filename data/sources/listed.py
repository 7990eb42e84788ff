"""A text list of images and labels: lines `path<TAB>label`."""

import hashlib
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from manyfaces.configs.errors import UserError
from manyfaces.data.sources.source import Claim, FileAt, Option, Source
from manyfaces.data.sources.text_column import TextColumn

_LOOKED_AT_BYTES = 4096


class Listed(Source):
    """The images of a text file of lines `path<TAB>label`, or with one space between; paths are
    relative to the list's folder or to `root`.

    Raises `UserError` naming file:line for a line that is none, and where not one of the images is
    there.
    """

    kind, described = "list", "a text list (`path<TAB>label` lines)"
    precedence, in_sequence = 50, False
    options = (
        Option("root", Path, "folder of a list's relative paths; default: the list's folder"),
    )

    @classmethod
    def claims(cls, path: Path) -> list[Claim]:
        if path.is_dir():
            return []
        with path.open("rb") as file:
            is_text = b"\0" not in file.read(_LOOKED_AT_BYTES)
        # Any text may be a list, so that a file with another kind's suffix is left to that kind.
        return [Claim([path], certain=False)] if is_text else []

    def __init__(self, path: Path, files: Sequence[Path], root: Path | None = None) -> None:
        self.path, self.root, self._names = path, root or path.parent, TextColumn()
        labels, codes = array("i"), dict[str, int]()
        listing = hashlib.sha256(str(self.root).encode(errors="surrogateescape"))
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                listing.update(line.encode(errors="surrogateescape"))
                if not (line := line.rstrip("\r\n")).strip():
                    continue
                name, label = _split(line, f"{path}:{number}")
                self._names.append(name)
                labels.append(codes.setdefault(label, len(codes)))
        if not labels:
            raise UserError(f"{path}: no lines in it; expected `path<TAB>label`")
        if not any(Path(self.place(row).path).exists() for row in range(len(labels))):
            raise UserError(
                f"{path}: not one of its {len(labels):,} images is there (the first: "
                f"{self.place(0)}); set --root FOLDER"
            )
        self.identities, self.label_N = list(codes), np.array(labels, np.int32)
        self.digest = listing.hexdigest()

    def place(self, row: int) -> FileAt:
        return FileAt(str(self.root / self.name(row)))

    def name(self, row: int) -> str:
        return self._names[row]


def _split(line: str, where: str) -> tuple[str, str]:
    """Path and label of a line."""
    name, _, label = line.partition("\t") if "\t" in line else line.rpartition(" ")
    if not name.strip() or not label.strip() or "\t" in label:
        raise UserError(
            f"{where}: expected `path<TAB>label` or `path label`, got {line[:80]!r}; mend the line "
            "or remove it"
        )
    return name.strip(), label.strip()
