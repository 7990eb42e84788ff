"""Runs of before transforms were kinds go on with the same images."""

from typing import Any

import earlier_augmentation as earlier
import numpy as np
import pytest
from changed_images import changed
from hypothesis import given
from hypothesis import strategies as st

from manyfaces.configs.load import load_stored
from manyfaces.data.store.samples import Store
from manyfaces.data.transforms.augmentation import Augmentation
from manyfaces.data.transforms.transform import Drawn

MODEL = {"kind": "mobilefacenet"}


@pytest.fixture
def blobs(dataset):
    return Store(dataset.part).read(range(12))


def steps_of_before(old: Any, choices: earlier.Choices) -> list[Drawn]:
    """What was fed to DALI, as the steps of today."""
    steps: list[Drawn] = []
    if old.mask:
        steps.append({"anchor": choices.mask_anchor, "shape": choices.mask_shape})
    if old.shift_px or old.scale or old.rotate_deg or old.crop:
        steps.append({"matrix": choices.matrix})
    elif old.flip:
        steps.append({"flip": choices.flip})
    if old.brightness or old.contrast or old.saturation:
        names = ("brightness", "contrast", "saturation")
        steps.append({name: getattr(choices, name) for name in names})
    elif old.gray:
        steps.append({"saturation": choices.saturation})
    if old.blur:
        steps.append({"sigma": choices.blur_sigma})
    if old.low_resolution:
        steps.append({"height": choices.low_px, "width": choices.low_px})
    if old.jpeg:
        steps.append({"quality": choices.jpeg_quality})
    if old.erase:
        steps.append({"anchor": choices.erase_anchor, "shape": choices.erase_shape})
    return steps


def pair(numbers):
    return st.tuples(numbers, numbers).map(lambda both: tuple(sorted(both)))


RATES, ON = st.floats(0, 1), st.floats(0.1, 1)
OLD = st.fixed_dictionaries(
    {},
    optional={
        "mask": RATES,
        "mask_top": pair(RATES),
        "flip": RATES,
        "misalign": ON,
        "shift_px": st.floats(0, 56),
        "scale": st.floats(0, 0.5),
        "rotate_deg": st.floats(0, 45),
        "crop": RATES,
        "crop_min": st.floats(0.2, 0.9),
        "colour": ON,
        "brightness": RATES,
        "contrast": RATES,
        "saturation": RATES,
        "gray": RATES,
        "blur": RATES,
        "blur_sigma_px": pair(st.floats(0.1, 5)),
        "low_resolution": RATES,
        "low_resolution_px": pair(st.integers(8, 200)),
        "jpeg": RATES,
        "jpeg_quality": pair(st.integers(1, 100)),
        "erase": RATES,
        "erase_px": pair(st.integers(1, 200)),
    },
)


@given(old=OLD, seed=st.integers(0, 2**31), first=st.integers(0, 2**40), px=st.integers(32, 300))
def test_what_is_drawn_is_what_was_drawn_before(old, seed: int, first: int, px: int) -> None:
    """A run of before goes on with the same images: from its stored tree, which has every key, and
    from its recipe."""
    config = earlier.settings(**old)
    positions = first + np.arange(50)
    expected = steps_of_before(config, earlier.draw(config, seed, positions, px))
    stored = load_stored({"model": MODEL, "data": {"augment": vars(config)}}, "a run of before")
    some = load_stored({"model": MODEL, "data": {"augment": old}}, "a recipe of before")
    assert stored == some
    found = Augmentation(stored.data.augment, (px, px)).draw(seed, positions).steps
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, values in ours.items():
            if name == "matrix":
                assert np.allclose(values, theirs[name], rtol=1e-6, atol=1e-5)
            else:
                assert np.array_equal(values, theirs[name]), name
                assert values.dtype == theirs[name].dtype


@pytest.mark.parametrize(
    "old",
    [
        {},
        {"flip": 0.0},
        {"flip": 0.0, "gray": 0.3},
        {"mask": 0.5, "blur": 0.5},
        {"flip": 0.0, "low_resolution": 0.5, "erase": 0.5},
        {"jpeg": 0.6},
        {"shift_px": 3, "scale": 0.06, "rotate_deg": 5, "brightness": 0.2, "gray": 0.3},
        {"crop": 0.5, "brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "mask": 0.5},
        {"misalign": 0.0, "colour": 0.0, "shift_px": 3, "brightness": 0.2},
    ],
    ids=lambda old: "-".join(old) or "flip alone",
)
@pytest.mark.parametrize("px", [112, 72])
def test_images_are_what_they_were_before(blobs, old, px: int) -> None:
    config = earlier.settings(**old)
    theirs = earlier.draw(config, 3, np.arange(12), px)
    expected = earlier.decode(list(blobs), config, theirs, px)
    tree = load_stored({"model": MODEL, "data": {"augment": old, "image_px": px}}, "before")
    images, _, choices = changed(blobs, *tree.data.augment, image_hw=tree.data.image_hw, seed=3)
    difference = np.abs(images.astype(int) - expected).max()
    warps = any("matrix" in step for step in choices.steps)
    assert difference <= (1 if warps else 0)
