"""Several views of each image: they are what a decoder of each alone gives, from one decode, and a
part is what OpenCV cuts out and resizes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from changed_images import changed
from hypothesis import given
from hypothesis import strategies as st

from manyfaces.configs.schema import Data, Transform
from manyfaces.configs.transforms.blur import Blur
from manyfaces.configs.transforms.colour import Colour
from manyfaces.configs.transforms.flip import Flip
from manyfaces.configs.transforms.resized_crop import ResizedCrop
from manyfaces.configs.transforms.solarise import Solarise
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.feed import decode as module
from manyfaces.data.feed.decode import ViewsDecoder
from manyfaces.data.feed.loader import IGNORED, Batch, Loader
from manyfaces.data.feed.quarantine import Quarantine
from manyfaces.data.feed.view import View
from manyfaces.data.store.samples import Store
from manyfaces.data.transforms.augmentation import Augmentation
from manyfaces.data.transforms.resized_crop import ResizedCrop as Built

CPU = torch.device("cpu")
VIEWS = {
    "main": View((112, 112), (Flip(),)),
    "global_0": View((96, 96), (ResizedCrop(), Flip(), Colour(brightness=0.4), Blur(p=0.5))),
    "local_0": View((48, 48), (ResizedCrop(scale=(0.05, 0.4)), Flip(), Solarise(p=0.5))),
    "local_1": View((48, 48), (ResizedCrop(scale=(0.05, 0.4)), Flip(), Solarise(p=0.5))),
    "plain": View((56, 40), ()),
}


def batches(
    dataset: Dataset, folder: Path, views: dict[str, View], world_size: int = 1, start: int = 0
) -> list[list[Batch]]:
    """The batches of each rank."""
    found = []
    for rank in range(world_size):
        quarantine = Quarantine(folder / f"{rank}.jsonl", dataset, 0.5)
        with Loader(
            dataset,
            Data(),
            views=views,
            seed=3,
            batch_size=18,
            rank=rank,
            world_size=world_size,
            position=start,
            end=54,
            device=CPU,
            quarantine=quarantine,
        ) as loader:
            found.append(list(loader))
    return found


def test_each_view_is_what_a_loader_of_it_alone_shows(dataset: Dataset, tmp_path: Path) -> None:
    """Whatever the other views are, wherever it starts and however many ranks share the batch."""
    ((*together,),) = batches(dataset, tmp_path, VIEWS)
    for name, view in VIEWS.items():
        ((*alone,),) = batches(dataset, tmp_path, {name: view})
        for ours, theirs in zip(together, alone, strict=True):
            assert ours.images[name].shape == (18, *view.image_hw, 3)
            assert torch.equal(ours.images[name], theirs.images[name])
    assert not torch.equal(together[0].images["local_0"], together[0].images["local_1"])
    shares = batches(dataset, tmp_path, VIEWS, world_size=3, start=18)
    for number, whole in enumerate(together[1:]):
        for name in VIEWS:
            parts = [rank[number].images[name] for rank in shares]
            assert torch.equal(torch.cat(parts), whole.images[name])


@pytest.mark.parametrize("broken", [b"", b"\xff\xd8\xff and what is no image \xff\xd9"])
def test_a_corrupt_image_costs_itself_in_every_view(dataset: Dataset, broken: bytes) -> None:
    blobs = Store(dataset.part).read(range(12))
    augmentations = [Augmentation(view.augment, view.image_hw) for view in VIEWS.values()]
    choices = [
        each.draw(1, np.arange(12), name) for name, each in zip(VIEWS, augmentations, strict=True)
    ]
    decoder = ViewsDecoder(augmentations, 12, device=CPU)
    whole, _ = decoder.finish(decoder.start(blobs, choices))
    damaged = [*blobs[:5], np.frombuffer(broken, np.uint8), *blobs[6:]]
    found, good = decoder.finish(decoder.start(damaged, choices))
    assert good.tolist() == [slot != 5 for slot in range(12)]
    kept = torch.from_numpy(good)
    for ours, theirs in zip(found, whole, strict=True):
        assert torch.equal(ours[kept], theirs[kept])
        assert torch.equal(ours[5], theirs[6])


def test_bytes_are_looked_at_and_decoded_once_for_all_views(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, graphs = [], []
    usable, decoders = module.usable_jpeg, module.fn.decoders
    monkeypatch.setattr(module, "usable_jpeg", lambda blob: looked.append(1) or usable(blob))

    class Counting:
        def image(self, *arguments: Any, **named: Any) -> Any:
            graphs.append(1)
            return decoders.image(*arguments, **named)

    monkeypatch.setattr(module.fn, "decoders", Counting())
    ((*made,),) = batches(dataset, tmp_path, VIEWS)
    assert len(looked) == 18 * len(made)
    assert len(graphs) == 1  # one decoder in the graph of all views
    assert not any((batch.labels_N == IGNORED).any() for batch in made)


def drawn(uniform_NU: np.ndarray, hw: tuple[int, int], **settings: Any) -> dict[str, np.ndarray]:
    return Built(**{"p": 1.0, "scale": (0.05, 0.4), "ratio": (0.75, 4 / 3)} | settings).draw(
        uniform_NU, hw
    )


@given(
    seed=st.integers(0, 2**32),
    hw=st.tuples(st.integers(16, 300), st.integers(16, 300)),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(sorted),
)
def test_a_part_has_area_and_proportions_of_the_range_and_lies_in_the_image(
    seed: int, hw: tuple[int, int], scale: Sequence[float], ratio: Sequence[float]
) -> None:
    uniform = np.random.default_rng(seed).random((64, 5))
    found = drawn(uniform, hw, scale=tuple(scale), ratio=tuple(ratio))
    assert (found["start"] >= 0).all()
    assert (found["end"] <= 1 + 1e-9).all()
    sides = found["end"] - found["start"]
    area, shape = sides.prod(1), (sides[:, 1] * hw[1]) / (sides[:, 0] * hw[0])
    # Where no ratio of the range fits, a side of the whole image is the nearest.
    fits = (shape >= ratio[0] - 1e-6) & (shape <= ratio[1] + 1e-6)
    assert (np.isclose(sides.max(1), 1) | fits).all()
    assert (area >= scale[0] - 1e-6).all()
    assert (area <= scale[1] + 1e-6).all()


def test_areas_are_uniform_and_an_image_is_left_whole_with_the_rest_of_the_probability() -> None:
    uniform = np.random.default_rng(0).random((20_000, 5))
    found = drawn(uniform, (112, 112), p=0.75)
    area = (found["end"] - found["start"]).prod(1)
    assert (area == 1).mean() == pytest.approx(0.25, abs=0.01)
    cropped = area[area < 1]
    assert np.quantile(cropped, [0, 0.25, 0.5, 1]) == pytest.approx(
        [0.05, 0.1375, 0.225, 0.4], abs=0.005
    )


def test_a_part_is_cut_from_the_stored_image_and_resized() -> None:
    """From one three times as large as the view: no pixel of it is thrown away before."""
    y, x = np.mgrid[:336, :336]
    picture = np.stack([x * 0.6, y * 0.6, 80 + 40 * np.sin(x / 25)], 2).astype(np.uint8)
    blob = cv2.imencode(".png", picture[:, :, ::-1])[1].reshape(-1)
    augmentation = Augmentation([ResizedCrop(scale=(0.1, 0.3))], (112, 112))
    decoder = ViewsDecoder([augmentation], 8, device=CPU, takes_png=True)
    choices = augmentation.draw(7, np.arange(8))
    (images,), good = decoder.finish(decoder.start([blob] * 8, [choices]))
    assert good.all()
    for image, start, end in zip(
        images.numpy(), choices.steps[0]["start"], choices.steps[0]["end"], strict=True
    ):
        (top, left), (bottom, right) = (np.round(each * 336).astype(int) for each in (start, end))
        expected = cv2.resize(
            picture[top:bottom, left:right], (112, 112), interpolation=cv2.INTER_LINEAR
        )
        assert np.abs(image.astype(int) - expected).max() <= 4  # of rounding to whole pixels


@pytest.mark.parametrize("threshold", [0, 128, 200])
def test_solarise_inverts_what_is_bright(dataset: Dataset, threshold: int) -> None:
    blobs = Store(dataset.part).read(range(12))
    transform: Transform = Solarise(p=0.5, threshold=threshold)
    images, plain, choices = changed(blobs, transform)
    is_changed = choices.steps[0]["is_changed"].astype(bool)
    assert 0 < is_changed.sum() < 12
    expected = np.where(plain >= threshold, 255 - plain, plain)
    assert np.array_equal(images, np.where(is_changed[:, None, None, None], expected, plain))
