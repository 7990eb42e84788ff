"""Recipes and override words to the typed tree: what loads, how it merges, and that every mistake
is one plain line with its place."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyfaces.configs import schema
from manyfaces.configs.backbones.iresnet import IResNet
from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.backbones.vit import VIT, ViT
from manyfaces.configs.explain import describe, keys
from manyfaces.configs.identity import identity
from manyfaces.configs.load import changed, dump, load
from manyfaces.configs.schedules.cosine import Cosine
from manyfaces.configs.schema import Config, UserError

MODEL = "model: {kind: mobilefacenet}\n"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a recipe into the working directory and gives its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "r.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return write


def errors(path: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    return str(caught.value).splitlines()


def test_loads_a_file_and_words_on_top_of_it(recipe: Any) -> None:
    config = load(
        recipe(
            "model:\n  kind: iresnet\n  depth: 100\ntrain: "
            "{batch_size: 64, optimizer: {kind: sgd, lr: 1e-4}}\n"
        ),
        [
            "train.batch_size=32",
            "cluster.workers={min: 1, max: 2}",
            "train.optimizer.lr=2e-4",
            "evaluation.pairs=[a.bin, b.bin]",
        ],
    )
    assert isinstance(config.model, IResNet)
    assert config.model.depth == 100
    assert config.train.batch_size == 32
    assert config.train.optimizer.lr == 2e-4
    assert config.cluster.workers == schema.Elastic(min=1, max=2)
    assert config.evaluation.pairs == ("a.bin", "b.bin")


def test_a_word_for_a_text_is_taken_as_written(recipe: Any) -> None:
    config = load(
        recipe(MODEL),
        [
            "run.name=007",
            "run.dir=2024-01-01",
            "data.path=yes",
            "tracking.uri=http://host:5000",
            "run.resume_from=",
        ],
    )
    assert (config.run.name, config.run.dir, config.data.path) == ("007", "2024-01-01", "yes")
    assert (config.tracking.uri, config.run.resume_from) == ("http://host:5000", None)


def test_a_number_with_an_exponent_is_a_number_wherever_it_stands(
    recipe: Any, tmp_path: Path
) -> None:
    parameters = "{a: 1e-3, b: -2.5E+2, c: .5e1, d: '1e-3', e: 1e, f: [1e2, e3]}"
    name = recipe(
        f"{MODEL}head: {{margin: {{kind: custom, file: m.py, name: M, parameters: {parameters}}}}}\n"
    )
    config = load(name, ["head.margin.parameters.g=3e4", "run.name=1e5", "train.batch_size=1e3"])
    given = config.head.margin.parameters  # type: ignore[attr-defined]
    assert given == {
        "a": 0.001, "b": -250.0, "c": 5.0, "d": "1e-3", "e": "1e", "f": [100.0, "e3"], "g": 30000.0
    }  # fmt: skip
    assert (config.run.name, config.train.batch_size) == ("1e5", 1000)
    (tmp_path / "dumped.yaml").write_text(dump(config))
    assert load("dumped.yaml") == config


def test_base_merges_deeply_and_another_kind_replaces_whole(recipe: Any) -> None:
    recipe(
        "model: {kind: iresnet, depth: 100}\ntrain: "
        "{epochs: 3, optimizer: {kind: sgd, lr: 0.2, momentum: 0.5}}\n",
        "grandparent.yaml",
    )
    recipe("base: grandparent\ntrain: {batch_size: 7, optimizer: {lr: 0.3}}\n", "parent.yaml")
    config = load(recipe("base: parent.yaml\nmodel: {kind: vit, size: tiny}\n"))
    assert config.model == ViT(size="tiny")
    assert (config.train.batch_size, config.train.epochs) == (7, 3)
    assert config.train.optimizer == schema.SGD(kind="sgd", lr=0.3, momentum=0.5)


def test_another_schedule_keeps_the_warmup(recipe: Any) -> None:
    """Also where it is spelt as before."""
    for train in (
        "{warmup_epochs: 4, schedule: {kind: polynomial, power: 3}}",
        "{schedule: {warmup_epochs: 4, kind: polynomial, power: 3}}",
    ):
        config = load(recipe(f"{MODEL}train: {train}\n"), ["train.schedule.kind=cosine"])
        assert config.train.schedule == Cosine()
        assert config.train.warmup_epochs == 4


def test_words_are_merged_before_the_file_sees_them(recipe: Any) -> None:
    name = recipe("model: {kind: mobilefacenet, scale: 1}\n")
    assert load(name, ["model.depth=34", "model.kind=iresnet"]).model == IResNet(depth=34)
    assert load(name, ["model.embedding_dim=64"]).model == MobileFaceNet(scale=1, embedding_dim=64)
    assert load(name, ["run.name=a", "run.name=b"]).run.name == "b"


def test_all_errors_at_once_with_file_line_path_and_what_is_allowed(recipe: Any) -> None:
    name = recipe(
        "run:\n  name: -x\nmodel:\n  kind: iresnt\ntrain:\n  batch-size: 3\n  precision: bf16\n  "
        "epochs: .inf\n"
        "  optimizer:\n    kind: adamw\n    betas: [0.9, 3]\n    lr: -1\ncluster:\n  workers: "
        "{min: 3, max: 2}\nengine:\nlr: 1\n"
    )
    found = errors(name, "train.x=4", "head.margin.k=.3", "head.scale=0")
    starts = {line.split(": ")[0] + " " + line.split(": ")[1]: line for line in found}
    assert set(starts) == {
        "r.yaml:2 run.name",
        "r.yaml:4 model.kind",
        "r.yaml:6 train.batch-size",
        "r.yaml:7 train.precision",
        "r.yaml:8 train.epochs",
        "r.yaml:11 train.optimizer.betas[1]",
        "r.yaml:12 train.optimizer.lr",
        "r.yaml:14 cluster.workers",
        "r.yaml:15 engine",
        "r.yaml:16 lr",
        "override 'train.x=4' train.x",
        "override 'head.margin.k=.3' head.margin.k",
        "override 'head.scale=0' head.scale",
    }
    for start, words in {
        "r.yaml:4 model.kind": "must be custom, iresnet, mobilefacenet, timm or vit, not 'iresnt'; did you mean iresnet?",
        "r.yaml:6 train.batch-size": "did you mean batch_size?",
        "r.yaml:7 train.precision": "must be auto, float32 or bfloat16, not 'bf16'; did you mean bfloat16? (bfloat16 is autocast",
        "r.yaml:8 train.epochs": "must be a number above 0, not .inf (Passes over the dataset",
        "r.yaml:11 train.optimizer.betas[1]": "a list of 2, each a number from 0 to 1, not 3",
        "r.yaml:14 cluster.workers": "min 3 is above max 2",
        "r.yaml:15 engine": "must be a mapping with the keys zero_stage",
        "r.yaml:16 lr": "did you mean train.optimizer.lr?",
        "override 'head.margin.k=.3' head.margin.k": "unknown key; kind arcface has kind, m, gradient",
        "override 'head.scale=0' head.scale": "must be a number above 0 and at most 512, not 0",
    }.items():
        assert words in starts[start]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "r.yaml: is empty"),
        ("# only a comment\n", "r.yaml: is empty"),
        ("- a\n", "the top level must be a mapping of keys, not a list"),
        ("text\n", "the top level must be a mapping of keys, not text"),
        (
            "run: {name: a}\n",
            "r.yaml:1: model: is missing; must be a mapping with kind: custom, iresnet, "
            "mobilefacenet, timm or vit",
        ),
        ("model:\n\tkind: vit\n", "r.yaml:2: a tab where YAML wants spaces"),
        ("model: {kind: vit\nrun: 3\n", "r.yaml:2: not YAML: "),
        (
            MODEL + "run: {name: a}\nrun: {name: b}\n",
            "r.yaml:3: run: is here twice, first at r.yaml:2",
        ),
        (
            MODEL + "run:\n  name: a\n  name: b\n",
            "r.yaml:4: run.name: is here twice, first at r.yaml:3",
        ),
        (MODEL + "run: {name: !!int x}\n", "r.yaml:2: run.name: 'x' is no int"),
        (MODEL + "run: {name: !!python/name:os.system x}\n", "r.yaml:2: run.name: the YAML tag"),
        (MODEL + "? [a]\n: b\n", "r.yaml:2: the top level: a key must be one word"),
        (MODEL + "run: &x {name: *x}\n", "holds itself"),
        (MODEL + "a: " + "[" * 3000 + "\n", "nests too deeply"),
        (MODEL + "a: \x00\n", "not text"),
        (
            "model: {kind: vit, depth: 12}\n",
            "model.depth: unknown key; it belongs to kind iresnet; kind vit has kind, "
            "embedding_dim",
        ),
        (
            MODEL + "train: {schedule: {powr: 1}}\n",
            "unknown key; did you mean power?; kind polynomial has kind, least_lr, power",
        ),
        (
            MODEL + "train.epochs: 3\n",
            "r.yaml:2: train.epochs: unknown key; dots are for override words, in a file nest",
        ),
        (
            MODEL + "cluster: {workers: {min: 1}}\n",
            "r.yaml:2: cluster.workers.max: is missing; must be a whole number above 0",
        ),
        (
            MODEL + "base: other.yaml\n",
            "r.yaml:2: base: other.yaml: no such file; shipped recipes are",
        ),
        (MODEL + "base: [a, b]\n", "r.yaml:2: base: must be one file name"),
        (MODEL + "base: r.yaml\n", "r.yaml:2: base: goes in a circle (r.yaml -> r.yaml)"),
    ],
)
def test_a_broken_file_is_one_clear_line(recipe: Any, text: str, words: str) -> None:
    [line] = errors(recipe(text))
    assert words in line


def test_bases_in_a_circle_and_mistakes_in_a_base(recipe: Any) -> None:
    recipe("base: b.yaml\n" + MODEL, "a.yaml")
    recipe("base: a.yaml\n", "b.yaml")
    [line] = errors("a.yaml")
    assert line == "b.yaml:1: base: goes in a circle (a.yaml -> b.yaml -> a.yaml)"
    recipe(MODEL + "run: {seed: -1}\n", "parent.yaml")
    [line] = errors(recipe("base: parent.yaml\n"))
    assert line.startswith("parent.yaml:2: run.seed: must be a whole number at least 0")


@pytest.mark.parametrize(
    "word",
    [
        "train.epochs",
        "=3",
        "train..epochs=3",
        "cluster.workers={min: 1",
        "run.name=@x",
        "run.name=*.tar",
    ],
)
def test_a_broken_word_is_one_clear_line(recipe: Any, word: str) -> None:
    [line] = errors(recipe(MODEL), word)
    assert line.startswith(f"override {word!r}: ")


def test_a_file_that_is_none(recipe: Any, tmp_path: Path) -> None:
    assert "is a directory, not a recipe" in errors(str(tmp_path))[0]
    assert errors("nowhere/demo.yaml")[0].startswith(
        "nowhere/demo.yaml: no such file; did you mean demo?; shipped recipes are demo, "
    )
    (tmp_path / "latin.yaml").write_bytes("run: {name: é}".encode("latin-1"))
    assert errors("latin.yaml") == ["latin.yaml: not UTF-8 text (byte 12)"]


def test_a_shipped_recipe_by_its_name(recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()  # the demo's own folder does not stand in its recipe's way
    assert load("demo") == load("configs/demo.yaml") == load("demo.yaml")
    assert load(recipe("base: demo\nrun: {name: mine}\n")).run.name == "mine"
    recipe(MODEL + "run: {name: nearer}\n", "demo.yaml")
    assert load("demo").run.name == "nearer"


# A value that its field allows, and differs from the default, for any field of the tree.
NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,30}\Z")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
RATES = st.floats(0, 1, exclude_max=True)
ABOVE = st.floats(0, exclude_min=True, allow_infinity=False, allow_nan=False)
COUNTS = st.integers(1, 2**40)
TREES = st.fixed_dictionaries(
    {
        "model": st.one_of(
            st.fixed_dictionaries(
                {
                    "kind": st.just("iresnet"),
                    "depth": st.sampled_from([18, 34, 50, 100, 200]),
                    "dropout": RATES,
                }
            ),
            st.fixed_dictionaries(
                {
                    "kind": st.just("mobilefacenet"),
                    "scale": st.sampled_from([1, 2, 4]),
                    "embedding_dim": COUNTS,
                }
            ),
            st.fixed_dictionaries(
                {
                    "kind": st.just("vit"),
                    "size": st.sampled_from(sorted(VIT)),
                    "drop_path": RATES,
                }
            ),
        )
    },
    optional={
        "run": st.fixed_dictionaries(
            {"name": NAMES, "dir": TEXTS, "resume_from": st.none() | TEXTS}
        ),
        "head": st.fixed_dictionaries(
            {
                "margin": st.fixed_dictionaries({"kind": st.just("cosface"), "m": RATES}),
                "sample_rate": RATES,
            }
        ),
        "train": st.fixed_dictionaries(
            {
                "epochs": ABOVE,
                "optimizer": st.fixed_dictionaries({"kind": st.just("sgd"), "lr": ABOVE})
                | st.fixed_dictionaries(
                    {"kind": st.just("adamw"), "betas": st.tuples(RATES, RATES)}
                ),
            }
        ),
        "evaluation": st.fixed_dictionaries({"pairs": st.lists(TEXTS, max_size=3)}),
        "cluster": st.fixed_dictionaries(
            {"workers": COUNTS | st.just("auto") | COUNTS.map(lambda n: {"min": n, "max": n + 1})}
        ),
    },
)


@given(tree=TREES)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_dump_loads_back_to_an_equal_tree(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]
) -> None:
    config = Config.model_validate(tree)
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_bytes(dump(config).encode())
    assert load(path) == config


# A kind inside an entry of a list, and one that is not the default, has to be named before its keys
# are.
IN_KINDS = ("evaluation.protocols.ijb.aggregation.", "objective.crops.")
KEYS = sorted(key for key in keys() if not key.startswith(IN_KINDS))


@given(key=st.sampled_from(KEYS), data=st.data())
@settings(derandomize=True, deadline=None, max_examples=60)
def test_a_slip_of_the_finger_in_any_key_is_told_the_key(
    tmp_path_factory: pytest.TempPathFactory, key: str, data: st.DataObject
) -> None:
    around, _, name = key.rpartition(".")
    at = data.draw(st.integers(0, len(name)))
    slip = name[:at] + "x" + name[at:]
    path = tmp_path_factory.getbasetemp() / "slip.yaml"
    path.write_text(
        "model: {kind: iresnet}\nhead: {margin: {kind: combined}}\ntrain: "
        "{optimizer: {kind: adamw}}\n"
    )
    lines = errors(str(path), f"{around}.{slip}=1".lstrip("."))
    [line] = [line for line in lines if "unknown key" in line]
    if len(name) > 2:  # of one or two letters, any other key may be as near
        hint = line.split("; ")[1]
        assert hint.startswith("did you mean ")
        assert name in hint


# Anything a keyboard may produce: keys and kinds that exist, values that may be wrong, and YAML's
# own signs.
SCRAPS = st.sampled_from(
    [
        "model",
        "kind",
        "iresnet",
        "vit",
        "train",
        "workers",
        "cluster",
        "base",
        "demo",
        "null",
        "-1",
        ".nan",
        "1e-4",
        "~",
        "=",
        ".",
    ]
)
SIGNS = st.sampled_from(
    [
        ": ",
        ":\n  ",
        "\n",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "- ",
        "&a ",
        "*a",
        "!!int ",
        "'",
        "#",
        "\t",
        "| ",
        "? ",
        "%",
        "@",
        "<<",
        "\ufeff",
        "é",
    ]
)
SCRAWL = st.lists(SCRAPS | SIGNS, max_size=12).map("".join)


@given(
    text=SCRAWL,
    words=st.lists(
        SCRAWL | st.tuples(st.sampled_from(sorted(keys())), SCRAWL).map("=".join), max_size=3
    ),
)
@settings(derandomize=True, deadline=None, max_examples=150)
def test_whatever_is_written_only_a_plain_error_comes(
    tmp_path_factory: pytest.TempPathFactory, text: str, words: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "scrawl.yaml"
    path.write_text(text, encoding="utf-8")
    said = ""
    try:
        load(path, words)
    except UserError as error:
        said = str(error)
    assert all(": " in line for line in said.splitlines())
    assert "Input should" not in said  # pydantic's own words


def test_the_plan_needs_no_heavy_module_and_well_under_a_second() -> None:
    code = (
        "import sys, manyfaces.configs.load as l, manyfaces.configs.plan as p\n"
        "from manyfaces.configs import plan_lines\n"
        "c = l.load('demo'); plan_lines.lines(p.plan(c, 100, 10, 2))\n"
        "print([m for m in ('torch', 'ray', 'deepspeed', 'mlflow', 'nvidia', 'webdataset', 'cv2') "
        "if m in sys.modules])"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
    assert time.perf_counter() - start < 5  # 0.5 s; the rest is for a busy machine


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            "margin: {kind: sphereface2}, sample_rate: 0.1",
            "head.sample_rate 0.1 does not go with sphereface2, .*; set head.sample_rate=1",
        ),
        (
            "margin: {kind: uniface}, sample_rate: 0.5",
            "head.sample_rate 0.5 does not go with uniface",
        ),
        (
            "margin: {kind: curricularface}, scale: 300",
            "head.scale 300: curricularface doubles logits",
        ),
        (
            "triplet: {}",
            "objective triplet needs several images of each identity, .*; set data.order=pk",
        ),
        (
            "margin: {kind: none}",
            "head.margin: none leaves nothing to train on; set objective=triplet",
        ),
        (
            "margin: {kind: none}, triplet: {}, sub_centers: 3",
            "head.sub_centers 3 does nothing where objective triplet has no class centres",
        ),
        (
            "margin: {kind: none}, triplet: {}, filter_above: 0.4",
            "head.filter_above 0.4 does nothing where objective triplet has no class centres",
        ),
        (
            "label_spaces: each",
            "head.label_spaces each needs several datasets, and data.mixture has none; set "
            "data.mixture",
        ),
        ("margin: {kind: magface, low: 20, high: 10}", "low 20 is not below high 10"),
        ("margin: {kind: custom}", "head.margin.file: is missing"),
        (
            "placement: host",
            "placement host needs sample_rate below 1, .*; set head.sample_rate=0.1",
        ),
        (
            "placement: host, sample_rate: 0.1, margin: {kind: none}, triplet: {}",
            "head.placement host does nothing where objective triplet has no class centres",
        ),
    ],
)
def test_losses_that_do_not_go_together_are_refused(recipe: Any, head: str, message: str) -> None:
    path = recipe(f"{MODEL}head: {{{head}}}\n")
    assert any(re.search(message, line) for line in errors(path))


def test_where_rows_live_may_change_in_a_run(recipe: Any) -> None:
    configs = [
        load(recipe(f"{MODEL}head: {{sample_rate: 0.5, placement: {where}}}\n"))
        for where in ("device", "host")
    ]
    assert configs[0] != configs[1]
    assert (
        identity(configs[0])
        == identity(configs[1])
        != identity(load(recipe(f"{MODEL}head: {{sample_rate: 0.6}}\n")))
    )


def test_every_loss_says_when_to_use_it() -> None:
    lines = describe("head")
    kinds = [line.strip() for line in lines if line.strip().startswith("kind: ")]
    assert len(kinds) == 11
    assert all(re.match(r"kind: \w+ - .+\.$", line) for line in kinds)
    assert describe("head.rows")[0].startswith("optimizer [sgd]: ")
    with pytest.raises(UserError, match="heat: no mapping of the configuration; did you mean head"):
        describe("heat")


def test_a_configuration_changed_by_words_is_another_one_and_mistakes_are_told(recipe: Any) -> None:
    config = load(recipe(MODEL), ["evaluation.pairs=[a.bin]", "train.batch_size=32"])
    other = changed(config, ["evaluation.pairs=[b.bin]"])
    assert (other.evaluation.pairs, other.train.batch_size) == (("b.bin",), 32)
    assert changed(config, []) == config
    with pytest.raises(UserError, match=r"evaluation\.pear: unknown key; did you mean pairs"):
        changed(config, ["evaluation.pear=[b.bin]"])
