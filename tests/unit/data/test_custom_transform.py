"""Transforms that no file of the package knows: a subclass, and a class in a file."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from changed_images import SQUARE, changed
from numpy.typing import NDArray

from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.configs.identity import identity
from manyfaces.configs.load import dump, load
from manyfaces.data.store.samples import Store
from manyfaces.data.transforms.augmentation import Augmentation
from manyfaces.data.transforms.transform import Drawn, Transform


@pytest.fixture
def blobs(dataset):
    return Store(dataset.part).read(range(12))


class Invert(schema.Transform):
    """A kind that no file of the package knows."""

    kind: Literal["invert"] = "invert"
    target: ClassVar[str] = f"{__name__}.InvertImages"


class InvertImages(Transform):
    num_uniform = 2

    def __init__(self, p: float) -> None:
        self.p = p

    def draw(self, uniform_NU: NDArray[np.float64], image_hw: tuple[int, int]) -> Drawn:
        return {"is_inverted": uniform_NU[:, 0] < self.p}

    def apply(
        self, fn: Any, types: Any, image: Any, given: Mapping[str, Any], image_hw: tuple[int, int]
    ) -> Any:
        if given["is_inverted"] > 0:
            image = fn.cast(255 - image, dtype=types.UINT8)
        return image


def test_a_kind_is_added_by_its_classes_alone(blobs, tmp_path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: {kind: mobilefacenet}\ndata: {augment: [{kind: invert, p: 0.5}]}\n")
    config = load(recipe, ["data.augment.flip.p=0"])
    assert config.data.augment == (Invert(p=0.5),)
    images, plain, choices = changed(blobs, *config.data.augment)
    [step] = choices.steps
    assert 0 < step["is_inverted"].sum() < 12
    for image, source, is_inverted in zip(images, plain, step["is_inverted"], strict=True):
        assert np.array_equal(image, 255 - source if is_inverted else source)


CUSTOM = '''
import numpy as np
from manyfaces.data.transforms.transform import Transform


class Darken(Transform):
    """Images darkened by up to `most`."""

    keeps_size = True

    def __init__(self, most):
        self.most = most

    def draw(self, uniform_NU, image_hw):
        return {"factor": 1 - self.most * uniform_NU[:, 0]}

    def apply(self, fn, types, image, given, image_hw):
        if given["factor"] < 0.75:
            image = fn.brightness(image, brightness=given["factor"])
        return image


class OneForAll(Darken):
    def draw(self, uniform_NU, image_hw):
        return {"factor": np.float32(0.5)}


class NoTransform:
    def __init__(self, most):
        pass
'''


@pytest.fixture
def custom(tmp_path):
    (tmp_path / "darken.py").write_text(CUSTOM)

    def write(name: str, p: float = 1.0) -> schema.Config:
        kind = (
            f"{{kind: custom, file: {tmp_path}/darken.py, name: {name}, parameters: {{most: 0.5}}"
        )
        recipe = tmp_path / "r.yaml"
        recipe.write_text(
            f"model: {{kind: mobilefacenet}}\ndata: {{augment: [{kind}, p: {p}}}, flip]}}\n"
        )
        return load(recipe)

    return write


@pytest.mark.parametrize("p", [1.0, 0.5])
def test_a_custom_transform_from_its_file_to_the_images(blobs, custom, tmp_path, p: float) -> None:
    config = custom("Darken", p)
    images, plain, choices = changed(blobs, *config.data.augment)
    step, flip = choices.steps
    is_changed = step.get("is_changed", np.ones(12, np.int32))
    assert is_changed.any()
    assert is_changed.all() == (p == 1)
    for n, source in enumerate(plain):
        expected = source.astype(float)
        if is_changed[n] and step["factor"][n] < 0.75:
            expected = source * step["factor"][n]
        if flip["flip"][n]:
            expected = expected[:, ::-1]
        assert np.abs(images[n] - expected).max() <= 1
    before = identity(config)
    file = tmp_path / "darken.py"
    file.write_text(CUSTOM + "# another file\n")
    assert identity(config) != before
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(dump(config))
    assert load(dumped) == config


def test_a_custom_transform_that_is_none_is_told(custom) -> None:
    with pytest.raises(UserError, match=r"NoTransform; derive it from manyfaces.data.transforms"):
        Augmentation(custom("NoTransform").data.augment, SQUARE)
    augmentation = Augmentation(custom("OneForAll").data.augment, SQUARE)
    with pytest.raises(UserError, match=r"OneForAll.draw: factor has shape \(\) for 3 images"):
        augmentation.draw(0, np.arange(3))
