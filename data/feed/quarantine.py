"""Samples that could not be decoded: left out from then on, and listed for people."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.dataset import Dataset

_ALWAYS_ALLOWED = 10


class Quarantine:
    """Samples that could not be decoded, kept in `quarantine.jsonl`; they keep their place in the
    order with label -1.

    `tell` gets a line about each. All ranks of a run write to one file, and heed what each other
    found. `add` raises `UserError` once they all have found more than `max_share` of the dataset
    (ten are always allowed).
    """

    def __init__(
        self,
        file: Path,
        dataset: Dataset,
        max_share: float,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.file, self.dataset, self.tell = file, dataset, tell
        self.limit = max(_ALWAYS_ALLOWED, int(max_share * dataset.manifest.num_images))
        self.samples: set[int] = set()
        self._read_to = 0
        self._read()

    def add(self, sample: int, position: int) -> None:
        """Leave out the sample, which was found at this position of the stream."""
        if sample in self.samples:
            return
        self._read()
        if sample in self.samples:  # another rank, or the last start of this one, was faster
            return
        self.samples.add(sample)
        name = self.dataset.name(sample)
        row = {
            "sample": sample,
            "name": name,
            "position": position,
            "reason": "not a whole, decodable JPEG",
        }
        with self.file.open("a") as file:  # in one write, since other ranks write as well
            file.write("\n" * self._is_torn() + json.dumps(row) + "\n")
        self.tell(
            f"{name} is not a whole, decodable JPEG: left out from now on ({len(self.samples)} so "
            f"far, see {self.file.name})"
        )
        if len(self.samples) > self.limit:
            remedy = "repair the shards (see quarantine.jsonl), or raise data.max_bad_share"
            raise UserError(
                f"{self.dataset.where}: more than {self.limit} samples cannot be decoded, the last "
                f"{name}; {remedy}"
            )

    def _read(self) -> None:
        """Take over what was written since the last time, by this rank or another."""
        if not self.file.exists():
            return
        with self.file.open("rb") as file:
            file.seek(self._read_to)
            for line in file:
                # A line may be torn if the machine stopped; its sample is then found again.
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    sample = json.loads(line)["sample"]
                    if isinstance(sample, int) and 0 <= sample < self.dataset.manifest.num_images:
                        self.samples.add(sample)
                if line.endswith(b"\n"):
                    self._read_to += len(line)

    def _is_torn(self) -> bool:
        """Whether the file's last line has no end."""
        return self.file.exists() and self._read_to < self.file.stat().st_size
