"""The working folder of an embedding: its plan, the parts that are written, and what the ranks say
while they work.

A part is a fixed range of the rows of all images, whatever the number of ranks. Its file is whole
or not there: what was stopped goes on with the parts that are missing.
"""

import contextlib
import fcntl
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, PositiveInt

from manyfaces.cluster.stop import FILE as STOP_FILE
from manyfaces.configs.errors import UserError
from manyfaces.configs.files import write_atomic
from manyfaces.configs.parsed import parsed
from manyfaces.train.embedding.facts import Facts

PLAN = "embeddings.json"
_LOCK = ".lock"
_FAULT, _FAILURES = "fault.txt", "failures.txt"
_WORKING = "working"
"""The folder for what is of no use once all is embedded."""
_PART = re.compile(r"part-(\d{5,})\.parquet")
_LEAST_IMAGES, _MOST_IMAGES, _MANY_PARTS = 1 << 10, 1 << 16, 1000


class Plan(BaseModel):
    """What is embedded, and in which parts: the content of the file `embeddings.json`."""

    model_config = ConfigDict(frozen=True)

    facts: Facts
    part_images: PositiveInt
    """Rows of a part; the last one may have fewer."""

    @property
    def num_parts(self) -> int:
        """How many parts there are."""
        return -(-self.facts.num_images // self.part_images)

    def rows(self, part: int) -> range:
        """The rows of all images that a part has."""
        first = part * self.part_images
        return range(first, min(first + self.part_images, self.facts.num_images))


def usual_part_images(num_images: int) -> int:
    """Rows of a part where none were asked for: 1,024 up to a million images, and above that as
    many as make a thousand parts, at most 65,536."""
    wanted = -(-num_images // _MANY_PARTS)
    rounded = -(-wanted // _LEAST_IMAGES) * _LEAST_IMAGES
    return min(max(rounded, _LEAST_IMAGES), _MOST_IMAGES)


class Job:
    """The working folder at a path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.working = folder / _WORKING
        self.fetched = self.working / "fetched"
        """For files that are fetched before they are read."""
        self.logs = self.working / "logs"

    def plan(self) -> Plan:
        """Raises `UserError` where there is none."""
        file = self.folder / PLAN
        try:
            body = file.read_bytes()
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from error
        return parsed(Plan, body, str(file), "remove the folder, and embed again")

    def has_plan(self) -> bool:
        """Whether the folder holds an embedding that was begun."""
        return (self.folder / PLAN).is_file()

    def begin(self, plan: Plan) -> None:
        """Write the plan."""
        write_atomic(self.folder / PLAN, plan.model_dump_json(indent=1) + "\n")

    def part(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{number:05d}.parquet"

    def failed(self, number: int) -> Path:
        """The list of the images of a part that could not be embedded; written before the part."""
        return self.working / "failed" / f"part-{number:05d}.jsonl"

    def whole(self) -> set[int]:
        """The parts that are written."""
        found = (_PART.fullmatch(path.name) for path in self.folder.iterdir())
        return {int(told[1]) for told in found if told}

    def missing(self, plan: Plan) -> list[int]:
        """The parts that are not written, ascending."""
        whole = self.whole()
        return [part for part in range(plan.num_parts) if part not in whole]

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """While the block runs, no other process of this machine may embed into the folder. Raises
        `UserError` where one does."""
        self.failed(0).parent.mkdir(parents=True, exist_ok=True)
        with (self.folder / _LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(
                    f"{self.folder}: another process embeds into it; wait for it, or give another "
                    "--out"
                ) from error
            yield

    def is_ours(self) -> bool:
        """Whether the folder holds nothing but what an embedding has left there."""
        known = (PLAN, _LOCK, _WORKING, STOP_FILE)
        return all(
            name in known or _PART.fullmatch(name) or name.startswith(".part-")
            for name in (path.name for path in self.folder.iterdir())
        )

    def forget_session(self) -> None:
        """What ranks of an earlier session said is nothing to this one."""
        (self.folder / STOP_FILE).unlink(missing_ok=True)
        for file in [*self.working.glob("*"), *self.logs.glob("*")]:
            if file.is_file():
                file.unlink()
        for unfinished in [*self.folder.glob(".*.tmp*"), *self.folder.glob(".part-*")]:
            unfinished.unlink()

    def clear(self) -> None:
        """Leave the parts and the plan alone."""
        shutil.rmtree(self.working)
        for name in (_LOCK, STOP_FILE):
            (self.folder / name).unlink(missing_ok=True)

    def say_failure(self, line: str) -> None:
        """Say of ranks that have failed, and are started again."""
        with (self.working / _FAILURES).open("a") as file:
            file.write(f"{line}\n")

    def failures(self) -> list[str]:
        """What was said of ranks that have failed."""
        with contextlib.suppress(OSError):
            return (self.working / _FAILURES).read_text().splitlines()
        return []

    def say_done(self, rank: int, images: int, failed: int) -> None:
        """Say how many images this rank has embedded in this session, and how many it could not."""
        # Rank 0 of torchrun removes the folder as soon as all parts are whole.
        with contextlib.suppress(FileNotFoundError):
            (self.working / f"done-{rank:05d}").write_text(f"{images} {failed}")

    def done(self) -> tuple[int, int]:
        """How many images all ranks have embedded in this session, and how many they could not."""
        counts = [0, 0]
        for file in self.working.glob("done-*"):
            with contextlib.suppress(OSError, ValueError):  # it is being written
                images, failed = map(int, file.read_text().split())
                counts = [counts[0] + images, counts[1] + failed]
        return counts[0], counts[1]

    def say_fault(self, message: str) -> None:
        """Say what keeps this rank from going on, and would keep it again: all ranks stop."""
        gone = FileNotFoundError  # where all parts are whole already
        with contextlib.suppress(FileExistsError, gone), (self.working / _FAULT).open("x") as file:
            file.write(message)

    def fault(self) -> str | None:
        """What the first rank to stop has said; None where none did."""
        with contextlib.suppress(OSError):
            return (self.working / _FAULT).read_text() or None
        return None
