"""Every command of README.md: the command line reads each as it stands, and each is run, in a folder
of made faces that has the names of the README."""

import re
import shlex
import shutil
import struct
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import typer
from command_words import parsed
from commands import forked, manyfaces, rows, wait_until
from ray_nodes import ray_cluster

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

NOT_RUN = {
    "make demo": "takes minutes, and a venv of its own: its target and commands are looked at",
    "make test": "this is it: its target is looked at",
    "make gpu": "it needs one: its target is looked at",
}
SHORT = (
    "train.epochs=1",
    "cluster.launcher=process",  # Ray is what the tests of resume and submit start
    "cluster.threads_per_worker=1",
    "data.image_px=32",
    "model.scale=1",
    "model.embedding_dim=16",
    "train.batch_size=16",
)
"""A run of seconds in place of half an hour."""
IN_RAY = tuple(word for word in SHORT if not word.startswith("cluster.launcher"))


class StandIn(NamedTuple):
    """What is run in place of a command as the README has it."""

    why: str
    words: Mapping[str, str] = MappingProxyType({})
    """Words, or parts of words, that are replaced."""
    more: tuple[str, ...] = ()
    """Words behind the others."""


_NEW = "a dataset is written to a new folder, and DATASET is there already"
_ONE_OF_TWO = "a name or a file that exists"
_OF_A_CLUSTER = {"/shared/ms1mv3": "DATASET", "/shared/runs": "runs"}
_SMALL = (
    "data.expect_images=120",
    "data.expect_identities=20",
    "data.image_px=32",
    "evaluation.pairs=[]",
    "model={kind: mobilefacenet, scale: 1, embedding_dim: 16}",
    "train.batch_size=16",
    "train.epochs=1",
    "cluster.workers=1",
    "cluster.gpus_per_worker=0",
    "cluster.threads_per_worker=1",
)
STAND_INS = {
    "manyfaces data convert faces_emore": StandIn(_NEW, {"DATASET": "of_rec"}),
    "manyfaces data convert webface.zip": StandIn(_NEW, {"DATASET": "of_zip"}),
    "manyfaces data convert hf_export": StandIn(_NEW, {"DATASET": "of_parquet"}),
    "manyfaces data convert list.txt": StandIn(_NEW, {"DATASET": "of_list"}),
    "manyfaces submit": StandIn(
        "the cluster is this test's, and so are the faces", _OF_A_CLUSTER, _SMALL
    ),
    "manyfaces preflight": StandIn("as for submit", _OF_A_CLUSTER, _SMALL),
    "manyfaces train": StandIn("half an hour", {}, SHORT),
    "manyfaces train CONFIG --simulate-nodes": StandIn(
        "any recipe, and half an hour",
        {"CONFIG": "configs/faces/small_cpu.yaml"},
        ("data.path=DATASET", "run.name=nodes", "cluster.workers=2", *IN_RAY),
    ),
    "manyfaces sweep": StandIn(
        "half an hour", {}, ("cluster.workers=1", "--grace-epochs", "1", *IN_RAY)
    ),
    "manyfaces manifest": StandIn(
        "any recipe that says how many workers there are",
        {"CONFIG": "demo"},
        ("cluster.workers=2", "cluster.gpus_per_worker=0"),
    ),
    "manyfaces train configs/faces/small_cpu.yaml data.path=DATASET run.name=second": StandIn(
        "as long again", {"train.epochs=20": "train.epochs=2"}, SHORT[1:]
    ),
    "manyfaces check CONFIG": StandIn("any recipe", {"CONFIG": "demo"}),
    "manyfaces data synth": StandIn("fewer images", {"100": "3", "10": "2"}),
    "manyfaces data pairs": StandIn("fewer pairs than images", {}, ("--count", "20")),
    "manyfaces data forget DATASET --identity": StandIn(_ONE_OF_TWO, {"NAME": "person_03"}),
    "manyfaces head remap": StandIn(_ONE_OF_TWO, {"CKPT": "runs/first"}),
}
"""By how a command begins; of several, the longest counts. All others are run as they stand."""


def commands() -> list[str]:
    """The lines of blocks of commands, and the spans in the text that are commands, in their
    order; a command that stands there twice is run twice."""
    found: list[str] = []
    for block, span in re.findall(
        r"```bash\n(.*?)```|`((?:manyfaces|make) [^`\n]+)`", README, re.DOTALL
    ):
        lines = block.splitlines() if block else [span]
        found += [re.sub(r"\s+#.*", "", line) for line in lines if line]
    return found


COMMANDS = commands()


def stand_in(command: str) -> list[str]:
    """The words that are run for it, without the program's name."""
    begun = [begin for begin in STAND_INS if command.startswith(begin)]
    why, replaced, more = STAND_INS[max(begun, key=len)] if begun else StandIn("as it stands")
    assert why
    words = shlex.split(command)[1:]
    for word, other in replaced.items():
        assert any(word in each for each in words), f"{command}: no {word} to replace"
        words = [each.replace(word, other) for each in words]
    return [*words, *more]


def test_the_readme_is_short_and_its_blocks_are_of_known_kinds() -> None:
    assert len(README.splitlines()) <= 160
    fences = re.findall(r"^```(\w*)$", README, re.MULTILINE)
    assert set(fences[::2]) <= {"bash", "mermaid", "python", "text"}
    assert set(fences[1::2]) == {""}
    assert all(each.startswith(("make ", "manyfaces ")) for each in COMMANDS)


def test_every_stand_in_stands_for_a_command() -> None:
    assert set(NOT_RUN) <= set(COMMANDS)
    for begin in STAND_INS:
        assert any(command.startswith(begin) for command in COMMANDS), begin


@pytest.mark.parametrize(
    "command", dict.fromkeys(each for each in COMMANDS if each.startswith("manyfaces"))
)
def test_the_command_line_reads_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    if command.endswith("--help"):
        with pytest.raises(typer.Exit):
            parsed(command)
        assert "Usage: manyfaces" in capsys.readouterr().out
    else:
        parsed(command)


@pytest.mark.parametrize(
    "command", dict.fromkeys(each for each in COMMANDS if each.startswith("make"))
)
def test_the_makefile_has_it(command: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE)
    for line in re.findall(r"\$\(BIN\)/(manyfaces .*)", makefile):
        parsed(line.replace("$@", "OUT"))


def test_the_files_that_it_names_are_there() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    named = re.findall(r"\b(?:configs|tests|models|train)/[\w/]+\.(?:yaml|py|md)", README)
    folders = re.findall(r"`((?:configs|data|models|cluster|train)/[\w/]*)`", README)
    assert {"LICENSE", "tests/bench/README.md"} <= set(links)
    missing = [each for each in [*links, *named, *folders] if not (ROOT / each).exists()]
    assert not missing


def test_the_licences_name_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [each for extra in project["optional-dependencies"].values() for each in extra]
    section = README.split("## Licences")[1].lower()
    for requirement in [*project["dependencies"], *extras]:
        name = re.match(r"[\w.-]+", requirement)
        assert name
        assert f"`{name[0].lower()}`" in section, requirement


def images(dataset: Path) -> Iterator[tuple[str, int, bytes]]:
    """Key, class and JPEG of each image."""
    for shard in sorted(dataset.glob("*.tar")):
        with tarfile.open(shard) as archive:
            content = {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]
        for name, jpeg in content.items():
            if name.endswith(".jpg"):
                key = name.removesuffix(".jpg")
                yield key.replace("/", "_"), int(content[f"{key}.cls"]), jpeg


@pytest.fixture
def place(tmp_path: Path, dataset_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with made faces in each of the forms that the README names, and the one that the
    commands are typed in."""
    import pyarrow
    import pyarrow.parquet

    monkeypatch.chdir(tmp_path)
    found = list(images(dataset_path))
    for key, label, jpeg in found:
        person = tmp_path / "FOLDER" / f"person_{label:02}"
        person.mkdir(parents=True, exist_ok=True)
        (person / f"{key}.jpg").write_bytes(jpeg)
    lines = [f"person_{label:02}/{key}.jpg\t{label}\n" for key, label, _ in found]
    (tmp_path / "list.txt").write_text("".join(lines))
    with zipfile.ZipFile(tmp_path / "webface.zip", "w") as archive:
        for key, label, jpeg in found:
            archive.writestr(f"0/person_{label:02}/{key}.jpg", jpeg)
    for name in ("faces_emore", "hf_export", "SHARDS"):
        (tmp_path / name).mkdir()
    with (tmp_path / "faces_emore" / "train.rec").open("wb") as record:
        for number, (_, label, jpeg) in enumerate(found):
            body = struct.pack("<IfQQ", 0, label, number, 0) + jpeg
            record.write(struct.pack("<II", 0xCED7230A, len(body)) + body)
            record.write(bytes(-len(body) % 4))
    table = {"image": [jpeg for *_, jpeg in found], "label": [label for _, label, _ in found]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "hf_export" / "train.parquet")
    for shard in dataset_path.glob("*.tar"):
        shutil.copy(shard, tmp_path / "SHARDS")
    for (_, _, jpeg), name in zip(found, ("a.jpg", "b.jpg"), strict=False):
        (tmp_path / name).write_bytes(jpeg)
    drawn = forked("data", "pairs", dataset_path, "lfw.bin", "--count", 20)
    assert drawn.returncode == 0, drawn.stderr
    return tmp_path


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray cluster of one node."""
    with ray_cluster(monkeypatch, num_cpus=2) as (_, address):
        yield address


def on_a_cluster(command: str) -> bool:
    return command.startswith(("manyfaces preflight", "manyfaces submit", "manyfaces jobs"))


@pytest.mark.slow
def test_every_command_runs_in_the_order_of_the_readme(place: Path) -> None:
    for command in COMMANDS:
        if command not in NOT_RUN and not on_a_cluster(command):
            ended = forked(*stand_in(command))
            assert ended.returncode == 0, f"{command}:\n{ended.stdout}{ended.stderr}"
    assert (place / "runs" / "first" / "evaluation").exists()
    assert (place / "grid.png").exists()


@pytest.mark.slow
def test_every_command_of_a_cluster_runs(place: Path, dashboard: str) -> None:
    """They run in the order of the README, but the job is waited for before it is stopped."""
    shutil.move(place / "SHARDS", place / "DATASET")
    assert forked("data", "index", "DATASET").returncode == 0
    job = "ID"
    for command in filter(on_a_cluster, COMMANDS):
        words = [each.replace("http://HOST:8265", dashboard) for each in stand_in(command)]
        ended = manyfaces(*(job if each == "ID" else each for each in words))
        assert ended.returncode == 0, f"{command}:\n{ended.stdout}{ended.stderr}"
        if words[0] == "submit":
            [job] = set(re.findall(r"raysubmit_\w+", ended.stdout))
            wait_until(partial(is_over, job, dashboard))
        elif words[1] == "status":
            assert ended.stdout.startswith("SUCCEEDED"), ended.stdout
        elif words[1] == "logs":
            assert "finished at step" in ended.stdout
    assert any("train/loss" in row for row in rows(place / "runs/ms1mv3-r50/metrics.jsonl"))


def is_over(job: str, dashboard: str) -> bool:
    state = manyfaces("jobs", "status", job, "--address", dashboard).stdout
    return state.startswith(("SUCCEEDED", "FAILED", "STOPPED"))


@pytest.mark.slow
def test_the_python_runs(place: Path) -> None:
    shutil.move(place / "SHARDS", place / "DATASET")
    words = ("demo", "run.name=demo", "data.path=DATASET", "data.expect_images=120")
    made = ("data.expect_identities=20", "evaluation.pairs=[lfw.bin]")
    for command in (("data", "index", "DATASET"), ("train", *words, *made, *SHORT)):
        ended = forked(*command)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    assert len(found["embeddings"]) == 2
    assert found["network"] is not None
