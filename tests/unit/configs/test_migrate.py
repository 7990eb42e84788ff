"""Old spellings load for ever: in recipes, in words and in what runs have stored; each is told
once."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from manyfaces.configs.errors import UserError
from manyfaces.configs.identity import identity, tensors
from manyfaces.configs.load import load, load_stored
from manyfaces.configs.margins.arcface import ArcFace
from manyfaces.configs.margins.cosface import CosFace
from manyfaces.configs.objectives.margin_softmax import MarginSoftmax
from manyfaces.configs.objectives.objective import Objective
from manyfaces.configs.objectives.sum import Sum
from manyfaces.configs.objectives.triplet import Triplet
from manyfaces.configs.orders.order import Order
from manyfaces.configs.orders.pk import PK
from manyfaces.configs.orders.shuffle import Shuffle
from manyfaces.configs.schema import Config

MODEL = "model: mobilefacenet\n"
TWO = "mixture: [{path: a}, {path: b}]"
STORED = sorted((Path(__file__).parent / "stored").glob("*.yaml"))


@pytest.fixture
def lifted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a recipe with words, and gives the tree and the notices."""
    monkeypatch.chdir(tmp_path)

    def from_text(text: str, *words: str) -> tuple[Config, list[str]]:
        Path("r.yaml").write_text(MODEL + text)
        told: list[str] = []
        return load("r.yaml", words, told.append), told

    return from_text


@pytest.mark.parametrize(
    ("text", "words", "order", "notice"),
    [
        (f"data: {{order: mixture, {TWO}}}", (), Shuffle(), "r.yaml:2: data.order=mixture is an old spelling, now data.mixture alone"),
        (f"data: {{{TWO}}}", ("data.order=mixture",), Shuffle(), "override 'data.order=mixture': data.order=mixture is an"),
        (f"data: {{order: mixture, window_shards: 3, {TWO}}}", (), Shuffle(window_shards=3), "r.yaml:2: data.window_shards is an old"),
        ("data: {order: pk, images_per_identity: 2}", (), PK(images_per_identity=2), "r.yaml:2: data.images_per_identity is an old spelling, now data.order.images_per_identity"),
        ("data: {images_per_identity: 2}", ("data.order=pk",), PK(images_per_identity=2), "r.yaml:2: data.images_per_identity"),
        ("", ("data.order=pk", "data.images_per_identity=2"), PK(images_per_identity=2), "override 'data.images_per_identity=2'"),
        ("", ("data.images_per_identity=2", "data.order={kind: pk}"), PK(images_per_identity=2), "override"),
        ("data: {window_shards: 3}", (), Shuffle(window_shards=3), "r.yaml:2: data.window_shards is an old spelling, now data.order.window_shards"),
        ("data: {window_shards: 3, order: {kind: shuffle}}", (), Shuffle(window_shards=3), "r.yaml:2: data.window_shards"),
        # What belongs to an order that is not chosen said nothing, and says nothing.
        ("data: {order: pk, window_shards: 3}", (), PK(), None),
        ("data: {images_per_identity: 8}", (), Shuffle(), None),
        # Of both spellings, the one of the later layer holds; in one layer, today's.
        ("data: {order: {kind: pk, images_per_identity: 8}}", ("data.images_per_identity=2",), PK(images_per_identity=2), "override"),
        ("data: {order: pk, images_per_identity: 8}", ("data.order.images_per_identity=2",), PK(images_per_identity=2), "r.yaml:2: data.images_per_identity"),
        ("data: {order: {kind: pk, images_per_identity: 8}, images_per_identity: 2}", (), PK(images_per_identity=8), "r.yaml:2"),
        ("", ("data.order.window_shards=3", "data.window_shards=4"), Shuffle(window_shards=4), "override 'data.window_shards=4'"),
        ("", ("data.window_shards=4", "data.order.window_shards=3"), Shuffle(window_shards=3), "override 'data.window_shards=4'"),
        ("", ("data.window_shards=3", "data.window_shards=4"), Shuffle(window_shards=4), "override 'data.window_shards=4'"),
        # A mapping that does not say its kind is of the default kind.
        ("data: {window_shards: 3, order: {}}", (), Shuffle(window_shards=3), "r.yaml:2: data.window_shards"),
        ("data: {order: {window_shards: 3}}", ("data.window_shards=4",), Shuffle(window_shards=4), "override"),
    ],
)  # fmt: skip
def test_orders(
    lifted: Any, text: str, words: tuple[str, ...], order: Order, notice: str | None
) -> None:
    config, told = lifted(text, *words)
    assert config.data.order == order
    if notice is None:
        assert told == []
    else:
        assert sum(line.startswith(notice) for line in told) == 1
        assert len(told) == len(set(told))


BOTH = Sum(of=(MarginSoftmax(), Triplet(margin=0.2)))
SUM_NOTICE = (
    "head.triplet is an old spelling, now objective={kind: sum, of: [margin_softmax, "
    "{kind: triplet, ...}]}"
)


@pytest.mark.parametrize(
    ("head", "words", "objective", "notice"),
    [
        ("triplet: {margin: 0.2}", (), BOTH, f"r.yaml:3: {SUM_NOTICE}"),
        ("", ("head.triplet.margin=0.2",), BOTH, f"override 'head.triplet.margin=0.2': {SUM_NOTICE}"),
        ("triplet: {margin: 0.9}", ("head.triplet.margin=0.2",), BOTH, f"r.yaml:3: {SUM_NOTICE}"),
        ("triplet: {}", (), Sum(of=(MarginSoftmax(), Triplet())), f"r.yaml:3: {SUM_NOTICE}"),
        ("triplet: {margin: 0.2}, margin: none", (), Triplet(margin=0.2), "r.yaml:3: head.triplet is an old spelling, now objective={kind: triplet, ...}"),
        ("triplet: {margin: 0.2}, margin: {kind: none}", (), Triplet(margin=0.2), "r.yaml:3: head.triplet is an old"),
        ("triplet: {margin: 0.2}", ("head.margin=none",), Triplet(margin=0.2), "r.yaml:3: head.triplet is an old"),
        ("triplet: {}, margin: none, wire_dtype: bfloat16", (), Triplet(wire_dtype="bfloat16"), "r.yaml:3: head.triplet"),
        ("triplet: null", (), MarginSoftmax(), None),
        # A later layer's objective holds.
        ("triplet: {margin: 0.2}", ("objective=margin_softmax",), MarginSoftmax(), "r.yaml:3: head.triplet gives way to override 'objective=margin_softmax'"),
    ],
)  # fmt: skip
def test_triplets(
    lifted: Any, head: str, words: tuple[str, ...], objective: Objective, notice: str | None
) -> None:
    config, told = lifted(f"data: {{order: pk}}\nhead: {{{head}}}\n", *words)
    assert config.objective == objective
    assert told == ([] if notice is None else told[:1])
    assert notice is None or told[0].startswith(notice)


@pytest.mark.parametrize(
    ("name", "words", "objective"),
    [
        ("triplet", ("head.triplet.margin=0.2",), Triplet(margin=0.2)),
        ("triplet", ("head.triplet.margin=0.2", "head.triplet.mining=semi_hard"), Triplet(margin=0.2, mining="semi_hard")),
        ("triplet", ("head.triplet.margin=0.2", "objective.margin=0.1"), Triplet(margin=0.1)),
        ("triplet", ("objective.margin=0.1", "head.triplet.margin=0.2"), Triplet(margin=0.2)),
        ("triplet", ("head.triplet={margin: soft}", "head.margin=none"), Triplet(margin="soft")),
        ("triplet", ("head.margin=none",), Triplet()),
        ("cosface_triplet", ("head.triplet.weight=2",), Sum(of=(MarginSoftmax(), Triplet(weight=2)))),
        ("cosface_triplet", ("head.margin=none",), Triplet(weight=5)),
        ("cosface_triplet", ("head.margin=none", "head.triplet.weight=2"), Triplet(weight=2)),
        ("cosface_triplet", ("head.triplet=null",), MarginSoftmax()),
    ],
)  # fmt: skip
def test_old_words_on_todays_triplet_recipes(
    name: str, words: tuple[str, ...], objective: Objective
) -> None:
    told: list[str] = []
    assert load(name, ["data.path=faces", *words], told.append).objective == objective
    assert all("is an old spelling, now objective" in line for line in told)


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("data: {order: mixture}", (), "r.yaml:2: data.order: mixture needs two datasets; set data.mixture='[{path: A,"),
        ("head: {margin: none}", (), "r.yaml:2: head.margin: none leaves nothing to train on; set objective=triplet"),
        ("head: {margin: none, triplet: null}", (), "r.yaml:2: head.margin: none leaves nothing to train on"),
        ("data: {order: pk}\nobjective: triplet\nhead: {triplet: {}}", (), "r.yaml:4: head.triplet and objective say two things; keep objective"),
        ("data: {order: pk}\nobjective: margin_softmax", ("head.triplet.weight=5",), "override 'head.triplet.weight=5': head.triplet and objective say two"),
        ("data: {order: pk}\nobjective: triplet", ("head.triplet=null",), "override 'head.triplet=null': head.triplet: null leaves nothing to train on"),
        ("objective: margin_softmax\nhead: {margin: none}", (), "r.yaml:3: head.margin: none leaves nothing to train on"),
        ("data: {order: pk}\nhead: {triplet: 3}", (), "r.yaml:3: head.triplet: must be a mapping"),
        ("data: {order: pk}\nhead: {triplet: {margin: 9}}", (), "r.yaml:3: objective.of[1].margin: must be a number from 0 to 4"),
        ("data: {order: pk, images_per_identity: 1}", (), "r.yaml:2: data.order.images_per_identity: must be a whole number at least 2"),
        ("data: {window_shards: x}", (), "r.yaml:2: data.order.window_shards: must be a whole number above 0, not 'x'"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_an_old_spelling_is_one_line(
    lifted: Any, text: str, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        lifted(text, *words)
    [line] = str(caught.value).splitlines()
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("base", "recipe", "words", "order"),
    [
        ("order: {kind: pk, images_per_identity: 8}", "order: mixture", (), Shuffle()),
        ("order: {kind: shuffle, window_shards: 3}", "order: mixture", (), Shuffle(window_shards=3)),
        ("order: shuffle, window_shards: 3", "order: mixture", (), Shuffle(window_shards=3)),
        ("order: pk, window_shards: 3", "order: mixture", (), Shuffle(window_shards=3)),
        ("order: mixture", "window_shards: 3", (), Shuffle(window_shards=3)),
        ("order: mixture", "order: {window_shards: 3}", (), Shuffle(window_shards=3)),
        ("order: {kind: pk}", "image_px: 112", ("data.order=mixture",), Shuffle()),
        ("order: {kind: shuffle, window_shards: 3}", "image_px: 112", ("data.order=mixture",), Shuffle(window_shards=3)),
        ("order: mixture", "image_px: 112", ("data.order.window_shards=3",), Shuffle(window_shards=3)),
        ("order: mixture", "image_px: 112", ("data.window_shards=3", "data.order=mixture"), Shuffle(window_shards=3)),
    ],
)  # fmt: skip
def test_the_order_mixture_over_and_under_others(
    lifted: Any, base: str, recipe: str, words: tuple[str, ...], order: Order
) -> None:
    Path("base.yaml").write_text(f"{MODEL}data: {{{base}}}\n")
    config, told = lifted(f"base: base.yaml\ndata: {{{recipe}, {TWO}}}\n", *words)
    assert config.data.order == order
    assert sum("data.order=mixture is an old spelling" in line for line in told) == 1


def test_another_order_over_the_order_mixture(lifted: Any) -> None:
    config, told = lifted(f"data: {{order: mixture, {TWO}}}\n", "data.order=pk")
    assert config.data.order == PK()
    assert told == []
    with pytest.raises(UserError) as caught:
        lifted("data: {order: pk}\n", "data.order=mixture")
    message = "override 'data.order=mixture': data.order: mixture needs two datasets"
    assert str(caught.value).startswith(message)


def test_an_old_base_under_a_new_recipe(lifted: Any) -> None:
    Path("old.yaml").write_text(
        f"{MODEL}data: {{order: pk, images_per_identity: 8}}\nhead: {{triplet: {{}}}}\n"
    )
    config, told = lifted("base: old.yaml\ndata: {order: {images_per_identity: 2}}\n")
    assert config.data.order == PK(images_per_identity=2)
    assert [line.split(":")[0] for line in told] == ["old.yaml", "old.yaml"]


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_what_the_last_version_stored_is_what_todays_recipe_says(path: Path) -> None:
    """`stored/` holds the resolved trees of three recipes as the version before kinds wrote
    them."""
    tree = yaml.safe_load(path.read_text())
    # A default that has changed since and decides nothing, and what a run settles as it begins.
    threads = f"data.decode_threads={tree['data']['decode_threads']}"
    numbers = f"train.precision={tree['train']['precision']}"
    before = load_stored(tree, str(path))
    now = load(path.stem, ["data.path=faces", threads, numbers])
    assert before.has_head == now.has_head
    if not now.has_head:  # what a head would be says nothing
        now = now.model_copy(update={"head": before.head})
    assert before == now
    assert identity(before) == identity(now)
    assert tensors(before) == tensors(now)


def test_an_unknown_key_in_a_stored_tree_is_one_line() -> None:
    tree: dict[str, Any] = {
        "model": {"kind": "mobilefacenet"},
        "data": {"orders": 1},
        "x": {"y": 1},
    }
    with pytest.raises(UserError) as caught:
        load_stored(tree, "runs/a/config.yaml")
    [line] = str(caught.value).splitlines()
    assert line.startswith("runs/a/config.yaml: data.orders: unknown key; did you mean order?")
    assert "runs/a/config.yaml: x: unknown key" in line
    assert load_stored({"model": {"kind": "mobilefacenet"}}, "there").head.margin == ArcFace()
    old = {"model": {"kind": "mobilefacenet"}, "head": {"margin": {"kind": "cosface", "m": 0.2}}}
    assert load_stored(old, "there").head.margin == CosFace(m=0.2)
