"""MosaicML streaming's way to the first batch of a resumed epoch; a worker of bench_data.py, run by
a python that has mosaicml-streaming.

    python streaming_resume.py IMAGE_FOLDER WORK_FOLDER BATCH POSITION

Writes the images to WORK_FOLDER/mds once, as JPEG bytes and a label, and repeats them in epochs as
long as those of the datasets beside it. Says "ready", and measures each time it is told to. Batches
are decoded by PIL into uint8 in the process itself: with DataLoader's workers the first one takes
longer.
"""

import json
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from streaming import MDSWriter, Stream, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory


class Decoded(StreamingDataset):  # type: ignore[misc] # it stands in another environment
    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        sample = super().__getitem__(at)
        return torch.from_numpy(np.array(sample["image"].convert("RGB"))), sample["label"]


def main() -> None:
    images, work, batch, position = (
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        int(sys.argv[3]),
        int(sys.argv[4]),
    )
    warnings.simplefilter("ignore")
    os.environ["PYTHONWARNINGS"] = (
        "ignore"  # of the shared memory that it leaves behind when it is ended
    )
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    torch.set_num_threads(1)
    write(images, work / "mds")
    sizes = {
        name: json.loads((work / name / "manyfaces.json").read_text())["num_images"]
        for name in ("shards", "long")
    }

    def measure() -> dict[str, float]:
        clean_stale_shared_memory()
        return {
            name: first_batch(work / "mds", batch, size, position) for name, size in sizes.items()
        }

    measure()
    print("ready", file=out, flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure()), file=out, flush=True)


def write(images: Path, folder: Path) -> None:
    if (folder / "index.json").exists():
        return
    files = sorted(images.rglob("*.jpg"))
    labels = {
        name: number for number, name in enumerate(sorted({file.parent.name for file in files}))
    }
    with MDSWriter(out=str(folder), columns={"image": "jpeg", "label": "int"}) as writer:
        for file in files:
            with Image.open(file) as image:
                writer.write(
                    {"image": image, "label": labels[file.parent.name]}
                )  # an image from a JPEG file is stored as its bytes


def first_batch(folder: Path, batch: int, epoch_images: int, position: int) -> float:
    """Seconds from nothing open to the first batch from the position on."""
    state = {"num_canonical_nodes": 1, "shuffle_seed": 0, "initial_physical_nodes": 1}
    state |= {"epoch": position // epoch_images, "sample_in_epoch": position % epoch_images}
    began = time.perf_counter()
    dataset = Decoded(
        streams=[Stream(local=str(folder), choose=epoch_images)],
        shuffle=True,
        shuffle_seed=0,
        batch_size=batch,
    )
    loader = StreamingDataLoader(dataset, batch_size=batch, num_workers=0)
    loader.load_state_dict(state)
    next(iter(loader))
    took = time.perf_counter() - began
    dataset._iterator.exit()  # its threads would go on reading ahead, into the next measure
    return took


if __name__ == "__main__":
    main()
