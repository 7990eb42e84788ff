"""What a source holds and does not give."""

from array import array
from collections.abc import Iterator

from manyfaces.data.sources.text_column import TextColumn


class LeftOut:
    """Names of files, members or lines that are no image of a source, each with the reason why in
    one of a few wordings, at some tens of bytes each."""

    def __init__(self) -> None:
        self._names = TextColumn()
        self._reason_N = array("i")
        self._codes: dict[str, int] = {}

    def add(self, name: str, reason: str) -> None:
        """Add one."""
        self._names.append(name)
        self._reason_N.append(self._codes.setdefault(reason, len(self._codes)))

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Name and reason of each."""
        reasons = list(self._codes)
        for row, code in enumerate(self._reason_N):
            yield self._names[row], reasons[code]

    def by_reason(self) -> dict[str, int]:
        """How many were left out for each reason."""
        counts = dict.fromkeys(self._codes, 0)
        reasons = list(self._codes)
        for code in self._reason_N:
            counts[reasons[code]] += 1
        return counts

    def __str__(self) -> str:
        """The counts, for people."""
        return "; ".join(f"{count:,} {reason}" for reason, count in self.by_reason().items())
