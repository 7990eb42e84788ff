"""Samples that could not be decoded: left out from then on, and listed for people."""

import json
from collections.abc import Callable
from pathlib import Path

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.dataset import Dataset

_ALWAYS_ALLOWED = 10


class Quarantine:
    """Samples that could not be decoded, kept in `quarantine.jsonl`; they keep their place in the
    order with label -1.

    `tell` gets a line about each. `add` raises `UserError` once they are more than `max_share` of
    the dataset (ten are always allowed).
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
        for line in file.read_text().splitlines() if file.exists() else []:
            try:
                self.samples.add(json.loads(line)["sample"])
            except ValueError:
                # A line may be torn if the machine stopped; its sample is then found again.
                continue

    def add(self, sample: int, position: int) -> None:
        """Leave out the sample, which was found at this position of the stream."""
        if sample in self.samples:
            return
        self.samples.add(sample)
        name = self.dataset.name(sample)
        row = {
            "sample": sample,
            "name": name,
            "position": position,
            "reason": "not a whole, decodable JPEG",
        }
        with self.file.open("a") as file:
            file.write("\n" * (file.tell() > 0) + json.dumps(row))
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
