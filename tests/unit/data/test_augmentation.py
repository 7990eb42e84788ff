"""What is drawn for a list of transforms is a pure function of (seed, position)."""

import numpy as np
from changed_images import SQUARE
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from manyfaces.configs import schema
from manyfaces.configs.transforms.blur import Blur
from manyfaces.configs.transforms.colour import Colour
from manyfaces.configs.transforms.crop import Crop
from manyfaces.configs.transforms.erase import Erase
from manyfaces.configs.transforms.flip import Flip
from manyfaces.configs.transforms.gray import Gray
from manyfaces.configs.transforms.jpeg import Jpeg
from manyfaces.configs.transforms.low_resolution import LowResolution
from manyfaces.configs.transforms.mask import Mask
from manyfaces.configs.transforms.misalign import Misalign
from manyfaces.data.transforms.augmentation import Augmentation, Choices

RATES = st.floats(0, 1)


TRANSFORMS = st.one_of(
    RATES.map(lambda p: Flip(p=p)),
    st.builds(Mask, p=RATES),
    st.builds(Misalign, p=RATES, shift_px=st.just(4.0), rotate_deg=st.just(5.0)),
    st.builds(Crop, p=RATES),
    st.builds(Colour, p=RATES, brightness=st.just(0.3)),
    st.builds(Gray, p=RATES),
    st.builds(Blur, p=RATES),
    st.builds(LowResolution, p=RATES),
    st.builds(Jpeg, p=RATES),
    st.builds(Erase, p=RATES),
)


def equal(ours: Choices, theirs: Choices) -> bool:
    return all(
        np.array_equal(values, other[name])
        for step, other in zip(ours.steps, theirs.steps, strict=True)
        for name, values in step.items()
    )


@given(
    transforms=st.lists(TRANSFORMS, min_size=1, max_size=5),
    seed=st.integers(0, 2**62),
    positions=st.lists(st.integers(0, 2**48), min_size=1, max_size=20),
    data=st.data(),
)
def test_choices_are_a_pure_function_of_seed_and_position(
    transforms, seed: int, positions: list[int], data
) -> None:
    """Whichever other positions are drawn with it, and in which order."""
    augmentation = Augmentation(transforms, (96, 64))
    whole = augmentation.draw(seed, np.array(positions))
    rows = np.array(data.draw(st.lists(st.integers(0, len(positions) - 1), min_size=1)))
    part = Augmentation(transforms, (96, 64)).draw(seed, np.array(positions)[rows])
    assert equal(whole[rows], part)


@given(transforms=st.lists(TRANSFORMS, min_size=1, max_size=4), more=TRANSFORMS)
def test_one_more_transform_does_not_move_the_others(transforms, more) -> None:
    positions = np.arange(30, 60)
    few = Augmentation(transforms, SQUARE)
    many = Augmentation([*transforms, more], SQUARE)
    assume(len(many.steps) > len(few.steps))  # a joined step is another one
    drawn = many.draw(4, positions)
    assert equal(few.draw(4, positions), Choices(drawn.steps[:-1]))


def correlation(first, second) -> float:
    return float(np.abs(np.corrcoef(first, second)[0, 1]))


def test_two_of_a_kind_other_seeds_and_other_views_draw_apart() -> None:
    positions = np.arange(20000)
    augmentation = Augmentation([Blur(p=0.5), Gray(p=0.5), Blur(p=0.5), Blur(p=0.5)], SQUARE)
    drawn = augmentation.draw(1, positions)
    first, second, third = (drawn.steps[n]["sigma"] for n in (0, 2, 3))
    other_seed = augmentation.draw(2, positions).steps
    views = [augmentation.draw(1, positions, view).steps for view in ("global", "local")]
    for step in (0, 2):
        ours = drawn.steps[step]["sigma"]
        for theirs in (other_seed[step]["sigma"], *(view[step]["sigma"] for view in views)):
            assert correlation(ours, theirs) < 0.03
            assert abs((theirs > 0).mean() - 0.5) < 0.02
    assert correlation(views[0][0]["sigma"], views[1][0]["sigma"]) < 0.03
    assert correlation(views[0][0]["sigma"], views[0][2]["sigma"]) < 0.03
    for one, other in ((first, second), (first, third), (second, third)):
        assert correlation(one, other) < 0.03
    main = augmentation.draw(1, positions, "main")
    assert equal(drawn, main)


def test_probabilities_and_ranges() -> None:
    positions = np.arange(20000)
    augmentation = Augmentation(
        [
            Mask(p=0.25),
            Flip(p=0.3),
            Colour(brightness=0.25),
            Blur(p=0.1),
            LowResolution(p=0.2),
            Jpeg(p=0.3, quality=(40, 50)),
            Erase(p=0.4, side_px=(10, 20)),
        ],
        SQUARE,
    )
    mask, flip, colour, blur, low, jpeg, erase = augmentation.draw(0, positions).steps
    assert abs((mask["shape"][:, 0] > 0).mean() - 0.25) < 0.02
    assert abs(flip["flip"].mean() - 0.3) < 0.02
    assert np.abs(colour["brightness"] - 1).max() <= 0.25
    assert abs((blur["sigma"] > 0).mean() - 0.1) < 0.02
    assert abs((low["height"] > 0).mean() - 0.2) < 0.02
    assert set(np.unique(jpeg["quality"]).tolist()) == {0, *range(40, 51)}
    erased = erase["shape"].any(1)
    assert abs(erased.mean() - 0.4) < 0.02
    assert erase["shape"][erased].min() == 10
    assert erase["shape"].max() == 20
    assert (erase["anchor"] + erase["shape"]).max() <= 112
    transforms = [Misalign(p=0.3, rotate_deg=9), Colour(p=0.2, contrast=0.4)]
    warp, colour = Augmentation(transforms, SQUARE).draw(1, positions).steps
    assert abs((warp["matrix"][:, 0, 1] != 0).mean() - 0.3) < 0.02
    assert abs((colour["contrast"] != 1).mean() - 0.2) < 0.02


def test_neighbours_that_one_operation_carries_out_are_joined() -> None:
    def steps(*transforms: schema.Transform) -> list[list[str]]:
        found = Augmentation(transforms, SQUARE).steps
        return [[type(part).__name__ for part in step.parts] for step in found]

    flip, misalign, crop = Flip(), Misalign(shift_px=2), Crop(p=0.5)
    assert steps(flip) == [["Flip"]]
    assert steps(flip, misalign, crop) == [["Flip", "Misalign", "Crop"]]
    assert steps(flip, Gray(p=0.1), misalign) == [["Flip"], ["Gray"], ["Misalign"]]
    colour = Colour(contrast=0.1)
    assert steps(colour, Gray(p=0.1), colour) == [["Colour", "Gray"], ["Colour"]]


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20)
def test_joined_matrices_are_those_of_one_after_the_other(seed: int) -> None:
    """A pixel of the result comes from where each of them leads, the last one first."""
    transforms = [Flip(), Misalign(shift_px=5, scale=0.2, rotate_deg=20), Crop(p=0.7)]
    positions, size = np.arange(20), (96, 64)
    alone = [
        np.eye(3)
        + np.concatenate(
            [step.matrix(numbers.uniform(seed, positions, "main"), size), np.zeros((20, 1, 3))], 1
        )
        - np.diag([1, 1, 0])
        for transform in transforms
        for augmentation in [Augmentation([transform], size)]
        for step, numbers in zip(augmentation.steps, augmentation._numbers, strict=True)
    ]
    expected = alone[0] @ alone[1] @ alone[2]
    [together] = Augmentation(transforms, size).draw(seed, positions).steps
    assert np.allclose(together["matrix"], expected[:, :2], rtol=1e-5, atol=1e-4)
