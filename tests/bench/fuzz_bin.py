"""Damaged verification sets: each must be read or refused, and none may end the process.

    python tests/bench/fuzz_bin.py [--files 100000] [--seed 0]

Files of all protocols are mutated (bytes flipped, replaced, cut out, doubled, cut off; parts of two
files joined) and read in a child process. The counts are printed; the exit code is 1 where the
child ended by a signal or an error that is no `UserError`, and the file is kept.
"""

import argparse
import pickle
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from manyfaces.configs.errors import UserError
from manyfaces.data.sources.verification_bin import read_bin


def seeds() -> list[bytes]:
    """Sound files of each layout and protocol."""
    images = [b"\xff\xd8\xff an image \xff\xd9", b"", b"\xff\xd8\xff another \xff\xd9", b"x"]
    arrays = [np.frombuffer(image, np.uint8) for image in images]
    columns = [array[:, None] for array in arrays]
    contents = [
        (images, [True, False]),
        (arrays, [np.bool_(True), np.bool_(False)]),
        (columns, np.array([True, False])),
        (np.array(images, object), np.array([1, 0], np.float32)),
        ([np.void(b"an image")] * 4, ["1", np.str_("0")]),
        {"images": [bytearray(b"an image")], "same": [1.0, -1]},
    ]
    python_2 = b"\x80\x02]q\x00(U\x02\xff\xd8q\x01U\x01bq\x02e]q\x03\x88a\x86q\x04."
    return [python_2, *(pickle.dumps(c, protocol=p) for c in contents for p in range(6))]


def forged() -> list[bytes]:
    """Sound files but for a dtype that says by its flags, or by its name and flags, that the bytes
    of an image are pointers, or that they are none where they are."""
    plain = pickle.dumps(([np.full(64, 1, np.uint8)] * 2, [True]), protocol=2)
    name, end = b"X\x02\x00\x00\x00u1", b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    assert name in plain
    assert end in plain
    flagged = [plain.replace(end, end[:-2] + bytes([flags]) + b"t") for flags in (1, 4, 63, 255)]
    pointers = plain.replace(b"u1", b"O8").replace(b"K\x40\x85", b"K\x08\x85")
    assert pointers != plain
    return [*flagged, pointers]


def mutated(generator: random.Random, bodies: Sequence[bytes]) -> bytes:
    """One of the files with one to four faults."""
    body = bytearray(generator.choice(bodies))
    for _ in range(generator.randint(1, 4)):
        at, to = sorted(generator.randrange(len(body) + 1) for _ in range(2))
        match generator.randrange(6):
            case 0 if body:
                body[at % len(body)] ^= 1 << generator.randrange(8)
            case 1 if body:
                body[at % len(body)] = generator.randrange(256)
            case 2:
                del body[at : min(to, at + 16)]
            case 3:
                body[at:at] = body[at : min(to, at + 64)]
            case 4:
                del body[at:]
            case _:
                other = generator.choice(bodies)
                start = generator.randrange(len(other))
                body[at:] = other[start:]
    return bytes(body)


def read_all(folder: Path, seed: int, begin: int, end: int) -> Counter[str]:
    """Read the mutated files of these numbers; each lies in the folder while it is read."""
    file, counts = folder / "at_work.bin", Counter[str]()
    bodies, bad = seeds(), forged()
    for number in range(begin, end):
        generator = random.Random(f"{seed} {number}")
        body = bad[number] if number < len(bad) else mutated(generator, bodies)
        file.write_bytes(body)
        try:
            read_bin(file)
            counts["read"] += 1
        except UserError:
            counts["refused"] += 1
    return counts


def main() -> int:
    """Run the child, and say how it ended."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        counts = read_all(given.child, given.seed, 0, given.files)
        Console().print(
            f"{counts['read']:,} read, {counts['refused']:,} refused, none ended the process"
        )
        return 0
    folder = Path(tempfile.mkdtemp())
    ended = subprocess.run([sys.executable, *sys.argv, "--child", str(folder)]).returncode
    if ended:
        Console().print(f"the child ended with {ended}; the file is {folder / 'at_work.bin'}")
    return 1 if ended else 0


if __name__ == "__main__":
    sys.exit(main())
