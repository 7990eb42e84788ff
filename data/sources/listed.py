"""A text list of images and labels: lines `path<TAB>label`."""

import codecs
import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from manyfaces.configs.errors import UserError
from manyfaces.configs.urls import url_of
from manyfaces.data.sources.file_names import reason_against
from manyfaces.data.sources.source import Claim, FileAt, Option, Source
from manyfaces.data.sources.text_column import TextColumn
from manyfaces.data.sources.url_at import UrlAt

_LOOKED_AT_BYTES = 4096
_HEADING = re.compile(r"[^\W\d]+(?:[ _-][^\W\d]+)*")
"""A word of a header line: neither a digit, a dot nor a slash."""
_NUMBER = re.compile(r"0*(?P<value>\d+?)(?:\.0*)?")
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")


class Listed(Source):
    """The images of a text file of lines `path<TAB>label`, or with one space between; paths are
    relative to the list's folder or to `root`, or URLs. UTF-8, or UTF-16 as Windows writes it; a
    header line is left out.

    With `needs_labels` false, for uses that need no identity, a line may be a path alone, and its
    label is then "". Raises `UserError` naming file:line for a line that is none and for an image
    that is named twice, and where not one of the images is there.
    """

    kind, described = "list", "a text list (`path<TAB>label` lines)"
    precedence, in_sequence, may_lack_labels = 50, False, True
    options = (
        Option("root", Path, "folder of a list's relative paths; default: the list's folder"),
    )

    @classmethod
    def claims(cls, path: Path) -> list[Claim]:
        if path.is_dir():
            return []
        # Any text may be a list, so that a file with another kind's suffix is left to that kind.
        return [Claim([path], certain=False)] if _encoding(path) else []

    def __init__(
        self,
        path: Path,
        files: Sequence[Path],
        root: Path | None = None,
        *,
        needs_labels: bool = True,
    ) -> None:
        self.path, self.root, self._names = path, root or path.parent, TextColumn()
        labels, lines, codes = array("i"), array("q"), dict[str, int]()
        listing = hashlib.sha256(str(self.root).encode(errors="surrogateescape"))
        for number, line in _lines(path):
            listing.update(f"{line}\n".encode(errors="surrogateescape"))
            if not line.strip():
                continue
            if not needs_labels and _is_path(line):
                name, label = _unquoted(line.strip()), ""
            else:
                name, label = _split(line, f"{path}:{number}")
            if not labels and not len(self.left_out) and self._is_header(name, label):
                self.left_out.add(f"{path.name}:{number}", "a header line")
                continue
            self._names.append(name)
            lines.append(number)
            labels.append(codes.setdefault(label, len(codes)))
        if not labels:
            raise UserError(f"{path}: no lines in it; expected `path<TAB>label`")
        self._read_backslashes()
        self._require_some(len(labels))
        if twice := self._names.repeated():
            first, second = (lines[row] for row in twice)
            raise UserError(
                f"{path}:{second}: {self.name(twice[1])} stands in line {first} already; an image "
                "has one line: remove the other"
            )
        self._require_one_writing(codes)
        self.identities, self.label_N = list(codes), np.array(labels, np.int32)
        self.digest = listing.hexdigest()

    def _is_header(self, name: str, label: str) -> bool:
        """Whether the first line names columns and no image."""
        are_words = _HEADING.fullmatch(name) and _HEADING.fullmatch(label)
        return bool(are_words) and not (self.root / name).exists()

    def _read_backslashes(self) -> None:
        """Take backslashes for separators, as in lists that were made on Windows, unless files have
        them in their names."""
        rows = [row for row in range(len(self._names)) if "\\" in self._names[row]]
        if not rows or (self.root / self._names[rows[0]]).exists():
            return
        names = TextColumn()
        for row in range(len(self._names)):
            names.append(self._names[row].replace("\\", "/"))
        if _WINDOWS_PATH.match(self._names[rows[0]]):
            raise UserError(
                f"{self.path}: names files by their place on a Windows machine (the first: "
                f"{self._names[rows[0]]}); make the paths relative, and set --root FOLDER"
            )
        self._names = names
        self.notes = [
            f"{self.path}: the backslashes in {len(rows):,} lines were taken for separators of "
            "folders"
        ]

    def _require_one_writing(self, labels: Iterable[str]) -> None:
        """Raise `UserError` where a number is written in two ways: a label is a word, so that `7`
        and `007` would be two people."""
        written: dict[str, str] = {}
        for label in labels:
            if told := _NUMBER.fullmatch(label):
                known = written.setdefault(told["value"], label)
                if known != label:
                    raise UserError(
                        f"{self.path}: the labels {known!r} and {label!r} are one number and would "
                        "be two identities; write it in one way, or rename one of them"
                    )

    def _require_some(self, count: int) -> None:
        """Raise `UserError` where not one image is there."""
        if not any(_is_there(self.place(row)) for row in range(count)):
            raise UserError(
                f"{self.path}: not one of its {count:,} images is there (the first: "
                f"{self.place(0)}); set --root FOLDER"
            )

    def place(self, row: int) -> FileAt | UrlAt:
        name = self.name(row)
        return FileAt(str(self.root / name)) if url_of(name) is None else UrlAt(name)

    def name(self, row: int) -> str:
        return self._names[row]


def _encoding(path: Path) -> str | None:
    """The encoding of a text file; None for a file that is no text. What is not UTF-8 survives as
    bytes."""
    with path.open("rb") as file:
        head = file.read(_LOOKED_AT_BYTES)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-32" if head.startswith(codecs.BOM_UTF32_LE) else "utf-16"
    if b"\0" not in head:
        return "utf-8-sig"
    # Without a mark, every second byte of Latin text is zero.
    for encoding, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
        if 2 * zeros.count(0) > len(zeros) and head.count(0) == zeros.count(0):
            return encoding
    return None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line. Raises `UserError` for what is not in the encoding."""
    encoding = _encoding(path)
    if encoding is None:
        raise UserError(f"{path}: holds zero bytes and is no text; expected `path<TAB>label`")
    errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
    with path.open(encoding=encoding, errors=errors) as lines:
        try:
            for number, line in enumerate(lines, 1):
                if "\0" in line:
                    raise UserError(f"{path}:{number}: holds a zero byte; save it as UTF-8")
                yield number, line.rstrip()
        except UnicodeError as error:
            raise UserError(f"{path}: begins as {encoding} and is not; save it as UTF-8") from error


def _is_path(line: str) -> bool:
    """Whether a line is the path or the URL of an image, with nothing behind it."""
    whole = _unquoted(line.strip())
    is_url = url_of(whole) is not None and " " not in whole
    file = whole.replace("\\", "/").rpartition("/")[2]
    return "\t" not in line and (is_url or reason_against(file) is None)


def _split(line: str, where: str) -> tuple[str, str]:
    """Path and label of a line."""
    name, _, label = line.partition("\t") if "\t" in line else line.rpartition(" ")
    name, label = _unquoted(name.strip()), _unquoted(label.strip())
    # A path in the label's place is that of a line without a label, or with the label first.
    is_none = not name or not label or "\t" in label or reason_against(label) is None
    has_commas = "\t" not in line and reason_against(line.rpartition(",")[0].strip('" ')) is None
    if is_none or has_commas:
        remedy = "mend the line or remove it"
        if "\t" not in line and "," in line:
            remedy = "put a tab in place of the comma"
        elif line.count("\t") > 1:  # as a .lst of im2rec has
            remedy = "leave two columns, the path first"
        raise UserError(
            f"{where}: expected `path<TAB>label` or `path label`, got {line[:80]!r}; {remedy}"
        )
    return name, label


def _unquoted(word: str) -> str:
    return word[1:-1].replace('""', '"') if len(word) > 1 and word[0] == word[-1] == '"' else word


def _is_there(place: FileAt | UrlAt) -> bool:
    if isinstance(place, UrlAt):  # what is not there is found out when it is read
        return True
    try:
        return Path(place.path).exists()
    except (OSError, ValueError):  # a name that no file can have
        return False
