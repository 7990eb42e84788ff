"""Kinds: what a word chooses, what stands for what, and that nothing lists them."""

import importlib
import pkgutil
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import ValidationError

from manyfaces import configs
from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.errors import UserError
from manyfaces.configs.explain import default_kinds, describe, kind_keys
from manyfaces.configs.kinds import Custom, Kind, imported
from manyfaces.configs.load import dump, load
from manyfaces.configs.margins.arcface import ArcFace
from manyfaces.configs.margins.cosface import CosFace
from manyfaces.configs.margins.margin import Margin
from manyfaces.configs.node import Node
from manyfaces.configs.objectives.margin_softmax import MarginSoftmax
from manyfaces.configs.objectives.objective import Objective
from manyfaces.configs.objectives.sum import Sum
from manyfaces.configs.objectives.triplet import Triplet
from manyfaces.configs.orders.order import Order
from manyfaces.configs.orders.pk import PK

*_FIRST, _LAST = (str(each.word()) for each in Objective.kinds())
OBJECTIVES = f"{', '.join(_FIRST)} or {_LAST}"
PK_MODEL = "model: mobilefacenet\ndata: {order: pk}\n"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a recipe into the working directory and gives its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "r.yaml") -> str:
        (tmp_path / name).write_text(textwrap.dedent(text), encoding="utf-8")
        return name

    return write


def errors(path: str, *words: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(path, words)
    return str(caught.value).splitlines()


def families() -> list[type[Kind]]:
    return [Margin, Objective, Order]


@pytest.mark.parametrize("family", families(), ids=lambda family: family.__name__)
def test_the_kinds_are_the_modules_of_the_folder(family: type[Kind]) -> None:
    package = imported(f"{family.folder}.__path__")
    modules = {path.stem for path in Path(package[0]).glob("*.py")}
    words = {str(kind.word()) for kind in family.kinds()}
    assert words == modules - {"__init__", family.__name__.lower()}
    assert all(kind.__doc__ for kind in family.kinds())


def test_every_family_says_where_the_configuration_has_it() -> None:
    known = {*kind_keys().single, *kind_keys().lists}  # which imports the families that kinds name
    declared = [family for family in Kind.__subclasses__() if family.__module__.startswith("many")]
    keys = {family.config_key for family in declared}
    assert keys == known - {
        "objective.of",
        "evaluation.protocols.ijb.also",
        *(f"objective.crops.{view}_augment" for view in ("first", "second", "local")),
    }
    for family in declared:
        assert describe(family.config_key)[0].startswith("kind: ")
        assert str(family.kinds()[0].word()) in describe(family.config_key)[0]


def test_every_class_and_every_field_has_a_sentence() -> None:
    for module in pkgutil.walk_packages(configs.__path__, "manyfaces.configs."):
        importlib.import_module(module.name)
    todo, without = Node.__subclasses__(), []
    while todo:
        node = todo.pop()
        todo += node.__subclasses__()
        if not node.__module__.startswith("manyfaces.configs."):
            continue
        told = {node.__name__: vars(node)["__doc__"]}
        for name, info in node.model_fields.items():
            if name != "kind" or not issubclass(node, Kind | Custom):  # a kind's own sentence does
                told[f"{node.__name__}.{name}"] = info.description
        without += [name for name, text in told.items() if not (text or "").strip().endswith(".")]
    assert sorted(without) == []


def test_a_bare_word_stands_for_the_kind(recipe: Any) -> None:
    name = recipe("model: mobilefacenet\nhead: {margin: {kind: arcface, m: 0.3}}\n")
    config = load(name, ["head.margin=cosface", "data.order=pk"])
    assert config.model == MobileFaceNet()
    assert config.head.margin == CosFace(), "another kind replaces the recipe's, m and all"
    assert config.data.order == PK()
    # The same kind keeps what stands there.
    assert load(name, ["head.margin=arcface"]).head.margin == ArcFace(m=0.3)
    both = load(name, ["data.order=pk", "data.order.images_per_identity=2"])
    assert both.data.order == PK(images_per_identity=2)


def test_a_mapping_without_a_kind_is_of_the_defaults_kind(recipe: Any) -> None:
    config = load(
        recipe("model: mobilefacenet\nhead: {margin: {m: 0.3}}\n"), ["objective.weight=2"]
    )
    assert config.head.margin == ArcFace(m=0.3)
    assert config.objective == MarginSoftmax(weight=2)
    [line] = errors(recipe("model: {embedding_dim: 64}\n"))  # no default
    assert line.startswith(
        "r.yaml:1: model: kind is missing; must be a mapping with kind: custom, "
    )


def test_what_has_kinds_is_known_by_path() -> None:
    assert {
        "model",
        "objective",
        "data.order",
        "head.margin",
        "train.optimizer",
    } <= kind_keys().single
    assert default_kinds()["head.margin"] == "arcface"
    assert "model" not in default_kinds()


def test_kinds_in_lists(recipe: Any, tmp_path: Path) -> None:
    config = load(
        recipe(
            PK_MODEL
            + """\
            objective:
              kind: sum
              of:
                - margin_softmax
                - {kind: sum, of: [triplet, {kind: triplet, margin: soft}]}
            """.replace("            ", "")
        )
    )
    inner = Sum(of=(Triplet(), Triplet(margin="soft")))
    assert config.objective == Sum(of=(MarginSoftmax(), inner))
    assert [part.word() for part in config.objective.parts()] == [
        "margin_softmax",
        "triplet",
        "triplet",
    ]
    (tmp_path / "dumped.yaml").write_text(dump(config))
    assert load("dumped.yaml") == config


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("{kind: triplet,\n     margin: 9}", "r.yaml:7: objective.of[1].margin: must be a number from 0 to 4, or soft, not 9"),
        ("{kind: triplt}", f"r.yaml:6: objective.of[1].kind: must be {OBJECTIVES}, not 'triplt'; did you mean triplet?"),
        ("triplt", f"r.yaml:6: objective.of[1].kind: must be {OBJECTIVES}, not 'triplt'; did you mean triplet?"),
        ("{margin: 1}", "r.yaml:6: objective.of[1]: kind is missing; must be a mapping with kind: "),
        ("3", f"r.yaml:6: objective.of[1]: must be a mapping with kind: {OBJECTIVES}, not 3"),
        ("{kind: triplet,\n     minig: batch_hard}", "r.yaml:7: objective.of[1].minig: unknown key; did you mean mining?; kind triplet has kind,"),
        ("{kind: sum, of: [triplet,\n     {kind: triplet, weight: -1}]}", "r.yaml:7: objective.of[1].of[1].weight: must be a number above 0, not -1"),
        ("margin_softmax", "objective sum has two objectives with a head; leave one out"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_list_of_kinds_is_told_with_its_place(
    recipe: Any, item: str, message: str
) -> None:
    name = recipe(f"{PK_MODEL}objective:\n  kind: sum\n  of: [margin_softmax,\n    {item}]\n")
    [line] = errors(name)
    assert message in line


def test_words_reach_into_the_list_of_a_sum(recipe: Any) -> None:
    name = recipe(f"{PK_MODEL}objective: {{kind: sum, of: [margin_softmax, triplet]}}\n")
    config = load(name, ["objective.of.triplet.margin=0.2"])
    assert config.objective == Sum(of=(MarginSoftmax(), Triplet(margin=0.2)))
    # There need not be a list before.
    words = [
        "objective.kind=sum",
        "objective.of.margin_softmax.weight=2",
        "objective.of.triplet.margin=1",
    ]
    config = load(recipe(PK_MODEL), words)
    assert config.objective == Sum(of=(MarginSoftmax(weight=2), Triplet(margin=1)))
    [line] = errors(recipe(PK_MODEL), "objective.of.triplet.margin=0.2")
    assert "objective.of: unknown key; it belongs to kind sum" in line


def test_a_list_that_is_too_short(recipe: Any) -> None:
    [line] = errors(recipe(f"{PK_MODEL}objective: {{kind: sum, of: [triplet]}}\n"))
    assert "objective.of: must be a list of at least 2, each a mapping" in line
    assert "not a list of 1" in line


LATE = """
from typing import ClassVar, Literal
import pathlib
from manyfaces.configs.explain import describe
from manyfaces.configs.load import dump, load
from manyfaces.configs.margins.margin import Margin
pathlib.Path("r.yaml").write_text("model: mobilefacenet")
load("r.yaml")

class Late(Margin):
    'A margin of a test.'
    kind: Literal["late"] = "late"
    target: ClassVar[str] = "builtins.dict"
    m: float = 0.25

config = load("r.yaml", ["head.margin=late", "head.margin.m=1"])
assert config.head.margin == Late(m=1)
assert config.head.margin.build(more=2) == {"m": 1.0, "more": 2}
assert "kind: late - A margin of a test." in describe("head.margin")
pathlib.Path("dumped.yaml").write_text(dump(config))
assert load("dumped.yaml") == config
"""


def test_a_kind_that_comes_late_is_one_of_them(tmp_path: Path) -> None:
    """In a process of its own, as a kind is there until the process ends."""
    subprocess.run([sys.executable, "-c", LATE], cwd=tmp_path, timeout=60, check=True)


TWICE = """
import pathlib
from manyfaces.configs.errors import UserError
from manyfaces.configs.load import load
from manyfaces.configs.margins.custom import CustomMargin
pathlib.Path("r.yaml").write_text("model: mobilefacenet\\nhead: {margin: cosface}")
pathlib.Path("mine.py").write_text('''
from typing import ClassVar, Literal
from manyfaces.configs.margins.margin import Margin
class Mine(Margin):
    kind: Literal["cosface"] = "cosface"
''')
CustomMargin.base = "builtins.object"
load("r.yaml")
CustomMargin(file="mine.py", name="Mine").build()
try:
    load("r.yaml")
except UserError as error:
    print(error)
"""


def test_a_word_that_a_persons_own_file_has_again_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWICE], cwd=tmp_path, timeout=60, check=True, stdout=subprocess.PIPE
    )
    [line] = done.stdout.decode().splitlines()
    assert line == (
        "r.yaml:2: head.margin: two classes are kind cosface, manyfaces.configs.margins.cosface."
        "CosFace and manyfaces_custom_mine.Mine; give one of them another word"
    )


class Fruit(Kind):
    """A family of the tests, whose kinds are all defined here."""

    folder: ClassVar[str] = "manyfaces.configs.sections"


class Basket(Node):
    fruit: Fruit | None = None
    more: tuple[Fruit, ...] = ()


def test_kinds_are_those_that_exist_at_the_time() -> None:
    with pytest.raises(ValidationError):
        Basket.model_validate({"fruit": "apple"})

    class Apple(Fruit):
        kind: Literal["apple"] = "apple"
        grams: int = 100

    assert Basket.model_validate({"fruit": "apple"}).fruit == Apple()
    basket = Basket.model_validate({"more": ["apple", {"kind": "apple", "grams": 3}]})
    assert basket.more == (Apple(), Apple(grams=3))
    assert Basket.model_validate(basket.model_dump(mode="json")) == basket
    assert (Fruit.word(), Apple.word(), Apple.kinds()) == (None, "apple", (Apple,))

    class Green(Apple):
        """A kind of a kind's class; it has the word of its base, which cannot be told apart."""

    with pytest.raises(
        ValidationError, match=r"two classes are kind apple, .*Apple and .*Green; give one"
    ):
        Basket.model_validate({"fruit": "apple"})
    assert Fruit.kinds() == (Apple, Green)


def test_a_sum_of_objectives_is_described_once() -> None:
    lines = describe("objective")
    kinds = [line for line in lines if line.startswith("kind: ")]
    assert [re.sub(r" -.*", "", line) for line in kinds] == [
        f"kind: {each.word()}" for each in Objective.kinds()
    ]
    [of] = [line for line in lines if line.startswith("  of: ")]
    assert of.startswith("  of: a list of at least 2, each a mapping with kind: ")
    assert describe("objective.of") == lines
    assert len(describe("")) > 100


def test_a_list_of_mappings_is_described() -> None:
    lines = describe("data.mixture")
    assert [line.split(":")[0] for line in lines] == ["path", "weight [1.0]"]
    assert "  path: text. The dataset's folder or URL." in describe("data")
