"""`data.augment` and `data.image_px`: how they are written now, and were before."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from earlier_augmentation import DEFAULTS
from hypothesis import given
from hypothesis import strategies as st

from manyfaces.configs.explain import describe, keys
from manyfaces.configs.identity import identity
from manyfaces.configs.load import dump, load, load_stored
from manyfaces.configs.plan import plan
from manyfaces.configs.schema import Config, Transform, UserError
from manyfaces.configs.transforms.blur import Blur
from manyfaces.configs.transforms.colour import Colour
from manyfaces.configs.transforms.flip import Flip
from manyfaces.configs.transforms.gray import Gray
from manyfaces.configs.transforms.jpeg import Jpeg
from manyfaces.configs.transforms.mask import Mask
from manyfaces.configs.transforms.misalign import Misalign

MODEL = "model: {kind: mobilefacenet}\n"
ALL_BEFORE = json.loads(json.dumps(DEFAULTS))
"""What a checkpoint of before holds of a recipe that sets none."""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a recipe into the working directory and gives its name."""
    monkeypatch.chdir(tmp_path)

    def write(data: str, name: str = "r.yaml", first: str = MODEL) -> str:
        (tmp_path / name).write_text(f"{first}data:\n{data}", encoding="utf-8")
        return name

    return write


def augment(path: str, *words: str) -> tuple[Transform, ...]:
    return load(path, words).data.augment


def errors(path: str, *words: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(path, words)
    return str(caught.value).splitlines()


def test_a_list_replaces_the_whole_and_a_mapping_changes_it(recipe: Any) -> None:
    nothing = recipe("  path: a\n")
    assert augment(nothing) == (Flip(p=0.5),)
    assert augment(nothing, "data.augment=[]") == ()
    path = recipe("  augment: [{kind: jpeg, p: 0.1}, flip, {kind: gray, p: 0.2}]\n")
    listed = (Jpeg(p=0.1), Flip(), Gray(p=0.2))
    assert augment(path) == listed
    assert augment(path, "data.augment.flip.p=0.3") == (Jpeg(p=0.1), Flip(p=0.3), Gray(p=0.2))
    assert augment(path, "data.augment.jpeg.quality=[40, 50]")[0] == Jpeg(p=0.1, quality=(40, 50))
    assert augment(path, "data.augment.gray.p=0") == listed[:2]
    assert augment(path, "data.augment=[flip]", "data.augment.flip.p=1") == (Flip(p=1),)
    assert augment(path, "data.augment.flip.p=1", "data.augment=[flip]") == (Flip(),)
    recipe("  augment: {flip: {p: 0.9}, blur: {p: 0.3}}\n", "over.yaml", "base: r.yaml\n")
    assert augment("over.yaml") == (Blur(p=0.3), Jpeg(p=0.1), Flip(p=0.9), Gray(p=0.2))
    assert augment("over.yaml", "data.augment.blur.p=0.4")[0] == Blur(p=0.4)


def test_what_is_added_goes_to_its_usual_place(recipe: Any) -> None:
    path = recipe("  path: a\n")
    words = [f"data.augment.{word}.p=1" for word in ("erase", "jpeg", "gray", "crop", "mask")]
    words += [f"data.augment.{word}.p=1" for word in ("solarise", "resized_crop", "rand_augment")]
    words += ["data.augment.misalign.scale=0.1", "data.augment.colour.contrast=0.1"]
    words += ["data.augment.low_resolution.p=1", "data.augment.blur.p=1"]
    assert tuple(each.word() for each in augment(path, *words)) == Transform.usual_order
    custom = "data.augment.custom={file: a.py, name: A}"
    assert [each.word() for each in augment(path, custom, words[0])] == ["flip", "custom", "erase"]


def test_transforms_that_do_nothing_are_left_out(recipe: Any) -> None:
    idle = (
        "misalign, colour, {kind: gray, p: 0}, {kind: flip, p: 0}, {kind: crop, p: 1, min_side: 1}"
    )
    path = recipe(f"  augment: [{idle}, {{kind: misalign, p: 0, shift_px: 3}}]\n")
    assert augment(path) == ()
    assert identity(load(path)) == identity(load(recipe("  augment: []\n", "none.yaml")))


# Old spellings


@pytest.mark.parametrize("words", [(), ("data.augment.blur=0", "data.augment.flip=0.5")])
def test_a_mapping_of_before_and_today_s_list_are_the_same_run(recipe: Any, words: Any) -> None:
    old = recipe(
        "  augment:\n    flip: 0.5\n    shift_px: 3\n    scale: 0.06\n    rotate_deg: 5\n"
        "    brightness: 0.2\n    contrast: 0.2\n    saturation: 0.2\n    gray: 0.05\n"
    )
    told: list[str] = []
    config = load(old, words, told.append)
    assert config.data.augment == load("faces_small_cpu").data.augment
    assert len(told) == 1 + len(words)
    assert told[0] == (
        "r.yaml:3: data.augment.flip, data.augment.shift_px, data.augment.scale, "
        "data.augment.rotate_deg, data.augment.brightness, data.augment.contrast, "
        "data.augment.saturation, data.augment.gray are old spellings, now data.augment.flip.p, "
        "data.augment.misalign.shift_px, data.augment.misalign.scale, "
        "data.augment.misalign.rotate_deg, data.augment.colour.brightness, "
        "data.augment.colour.contrast, data.augment.colour.saturation, data.augment.gray.p"
    )
    stored = {"model": {"kind": "mobilefacenet"}, "data": {"augment": dict(ALL_BEFORE)}}
    stored["data"]["augment"] |= {
        "shift_px": 3.0,
        "scale": 0.06,
        "rotate_deg": 5.0,
        "brightness": 0.2,
        "contrast": 0.2,
        "saturation": 0.2,
        "gray": 0.05,
    }
    assert identity(load_stored(stored, "a checkpoint")) == identity(config)


def test_an_old_word_on_top_of_any_recipe(recipe: Any) -> None:
    old = recipe("  augment: {mask_top: [0.4, 0.5], jpeg: 0.2}\n")
    new = recipe("  augment: [{kind: misalign, scale: 0.1}, flip]\n", "new.yaml")
    none = recipe("  path: a\n", "none.yaml")
    told: list[str] = []
    load(none, ["data.augment.flip=0.3"], told.append)
    assert told == [
        "override 'data.augment.flip=0.3': data.augment.flip is an old spelling, now "
        "data.augment.flip.p"
    ]
    flip, shift = "data.augment.flip=0.3", "data.augment.shift_px=2"
    assert augment(none, flip, shift) == (Misalign(shift_px=2), Flip(p=0.3))
    assert augment(new, flip, shift) == (Misalign(shift_px=2, scale=0.1), Flip(p=0.3))
    assert augment(old) == (Flip(), Jpeg(p=0.2))
    assert augment(old, flip, shift) == (Misalign(shift_px=2), Flip(p=0.3), Jpeg(p=0.2))
    assert augment(old, "data.augment.mask=0.7")[0] == Mask(p=0.7, top=(0.4, 0.5))
    assert augment(old, "data.augment.mask.p=0.7")[0] == Mask(p=0.7, top=(0.4, 0.5))
    assert augment(new, "data.augment={flip: 0.1, brightness: 0.2}") == (
        Misalign(scale=0.1),
        Flip(p=0.1),
        Colour(brightness=0.2),
    )
    recipe("  augment: {shift_px: 4, blur: 0.1}\n", "over.yaml", "base: new.yaml\n")
    assert augment("over.yaml") == (Misalign(shift_px=4, scale=0.1), Flip(), Blur(p=0.1))
    recipe("  augment: [{kind: gray, p: 0.5}]\n", "over.yaml", "base: r.yaml\n")
    assert augment("over.yaml", "data.augment.jpeg=0.1") == (Gray(p=0.5), Jpeg(p=0.1))


def test_settings_of_what_was_off_go_on_doing_nothing(recipe: Any) -> None:
    off = "blur_sigma_px: [1, 2], jpeg_quality: [10, 20], erase_px: [3, 4], crop_min: 0.5"
    path = recipe(f"  augment: {{{off}, mask_top: [0.1, 0.2], low_resolution_px: [9, 10]}}\n")
    assert augment(path) == (Flip(),)
    on = recipe("  augment: [{kind: blur, p: 0.2}]\n", "on.yaml")
    assert augment(on, "data.augment.blur_sigma_px=[1, 2]") == (Blur(p=0.2, sigma_px=(1, 2)),)
    [line] = errors(path, "data.augment.gray={}")
    assert line.startswith("override 'data.augment.gray={}': data.augment[")
    assert line.endswith(".p: is missing; must be a number from 0 to 1")


OLD_VALUES = st.fixed_dictionaries(
    {},
    optional={
        name: st.just(value) if isinstance(value, list) else st.floats(0, 0.5)
        for name, value in ALL_BEFORE.items()
        if name != "crop_min"
    },
)


@given(base=OLD_VALUES, recipe_=OLD_VALUES, words=OLD_VALUES)
def test_layers_of_before_merge_as_they_did(
    tmp_path_factory: pytest.TempPathFactory, base: Any, recipe_: Any, words: Any
) -> None:
    """A recipe on its base and words on top are one mapping, the upper key holding."""
    folder = tmp_path_factory.getbasetemp()
    for name, data in (("base", base), ("over", recipe_), ("one", base | recipe_ | words)):
        tree: dict[str, Any] = {"data": {"augment": data}}
        tree |= {"base": "base.yaml"} if name == "over" else {"model": {"kind": "mobilefacenet"}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    overrides = [f"data.augment.{name}={value}" for name, value in words.items()]
    assert load(folder / "over.yaml", overrides) == load(folder / "one.yaml")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("flip=2", "data.augment.flip: must be a number from 0 to 1, not 2"),
        ("flip=", "data.augment.flip: must be a number from 0 to 1, not nothing"),
        ("jpeg_quality=[3, 200]", "data.augment.jpeg_quality[1]: must be a list of 2, each"),
        ("jpeg_quality=[9, 3]", "data.augment.jpeg_quality: quality: the smallest 9 is above"),
        ("shftpx=1", "data.augment.shftpx: unknown key; did you mean data.augment.misalign.shift"),
        ("zzz=1", "data.augment.zzz: unknown key; write data.augment=[{kind: flip, p: 0.5}]"),
        ("kind=flip", "data.augment.kind: unknown key; write data.augment=[{kind: flip, p: 0.5}]"),
        ("flp.p=1", "data.augment[1].kind: must be blur, "),
        ("flip.q=1", "data.augment[0].q: unknown key; kind flip has kind, p"),
        ("gray.p=x", "data.augment[1].p: must be a number from 0 to 1, not 'x'"),
    ],
)
def test_mistakes_name_the_word_and_the_key(recipe: Any, word: str, message: str) -> None:
    word = f"data.augment.{word}"
    [line] = errors(recipe("  path: a\n"), word)
    assert line.startswith(f"override {word!r}: {message}")


def test_a_mistake_in_an_old_recipe_names_its_line_and_key(recipe: Any) -> None:
    path = recipe("  augment:\n    flip: 0.5\n    rotate_deg: 90\n    erase_px: [0, 5]\n")
    lines = errors(path)
    assert lines[0].startswith("r.yaml:5: data.augment.rotate_deg: must be a number from 0 to 45")
    assert lines[1].startswith("r.yaml:6: data.augment.erase_px[0]: must be a list of 2, each")


# Sizes of images


def test_images_have_a_height_and_a_width(recipe: Any) -> None:
    path = recipe("  path: a\n")
    assert load(path).data.image_hw == (112, 112)
    assert load(path, ["data.image_px=64"]).data.image_hw == (64, 64)
    tall = load(path, ["data.image_px=[128, 96]"])
    assert tall.data.image_hw == (128, 96)
    square = load(path, ["data.image_px=[112, 112]"])
    assert square == load(path)
    assert identity(square) == identity(load(path)) != identity(tall)
    for config in (square, tall):
        (dumped := Path("dumped.yaml")).write_text(dump(config))
        assert load(dumped) == config


def test_the_plan_counts_pixels(recipe: Any) -> None:
    path = recipe("  path: a\n")
    plans = [plan(load(path, [f"data.image_px={px}"]), 5000, 100, 1) for px in (96, [128, 72])]
    assert plans[0].upload_bytes == plans[1].upload_bytes
    assert plans[0].read_bytes == plans[1].read_bytes
    wide, tall = (
        plan(load(path, [f"data.image_px={px}"]), 5000, 100, 1) for px in ([64, 128], [128, 64])
    )
    assert wide == tall != plans[0]


@pytest.mark.parametrize(
    ("px", "place"),
    [
        ("31", ""),
        ("[64, 2000]", "[1]"),
        ("[64]", "[1]: is missing"),
        ("[64, 64, 3]", ""),
        ("x", ""),
    ],
)
def test_sizes_out_of_range_are_told(recipe: Any, px: str, place: str) -> None:
    [line] = errors(recipe("  path: a\n"), f"data.image_px={px}")
    assert line.startswith(f"override 'data.image_px={px}': data.image_px{place}")
    side = "a whole number from 32 to 1024"
    assert f"must be {side}, or a list of 2, each {side}" in line


# What is told about the tree


def test_every_transform_is_described_and_a_key() -> None:
    lines = describe("data.augment")
    # Kinds of other tests' own are made after the keys were first asked for.
    for kind in (each for each in Transform.kinds() if each.__module__.startswith("manyfaces.")):
        [line] = [line for line in lines if line.startswith(f"kind: {kind.word()} - ")]
        assert line.endswith(".")
        for name in kind.model_fields:
            assert keys()[f"data.augment.{kind.word()}.{name}"] == [kind.word()]
    assert any(line.startswith("  rotate_deg [0.0]: a number from 0 to 45. ") for line in lines)
    [line] = [line for line in describe("data") if line.startswith("augment ")]
    assert line.startswith("augment [flip]: a list, each a mapping with kind: ")
    assert describe("data.augment.blur")[1].startswith("  p: a number from 0 to 1")
    assert [line for line in describe("head.margin") if line.startswith("kind: ")]


@given(
    st.lists(
        st.one_of(
            st.builds(Flip, p=st.floats(0, 1)),
            st.builds(Blur, p=st.floats(0, 1)),
            st.builds(Misalign, p=st.floats(0, 1), rotate_deg=st.floats(0, 45)),
        ),
        max_size=4,
    )
)
def test_dump_loads_back(tmp_path_factory: pytest.TempPathFactory, transforms: Any) -> None:
    tree = {"model": {"kind": "vit", "size": "tiny"}, "data": {"augment": transforms}}
    config = Config.model_validate(tree)
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump(config))
    assert load(path) == config
