"""The command line: what it reads, in which order, and that a mistake is one line."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from manyfaces.cluster.jobs import Job
from manyfaces.cluster.memory import KEEP_MEMORY
from manyfaces.cluster.stop import StoppedError
from manyfaces.configs.schema import Config, UserError
from manyfaces.train.cli import main as command_line
from manyfaces.train.cli.main import main
from manyfaces.train.evaluation import evaluate_run
from manyfaces.train.evaluation.result import Quantity, Result

HEAVY = ("torch", "ray", "deepspeed", "mlflow", "nvidia", "webdataset", "pyarrow", "cv2")


def verbs() -> list[list[str]]:
    """The words of every verb, and of every group of verbs."""
    found: list[list[str]] = [[]]
    for name, command in typer.main.get_command(command_line.app).commands.items():  # type: ignore[attr-defined]
        found.append([name])
        found += [[name, below] for below in getattr(command, "commands", {})]
    return found


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Types the words, which are wrong, and gives the line that is told."""

    def told(*words: str) -> str:
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        [line] = err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return told


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations that `train` would have run."""
    seen: list[Config] = []
    module: Any = type(sys)("manyfaces.train.run")
    module.run = lambda config, console, takeover: seen.append(config)
    monkeypatch.setitem(sys.modules, "manyfaces.train.run", module)
    return seen


def test_the_command_alone_shows_the_three_moments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    told = capsys.readouterr().out
    for words in ("manyfaces submit", "manyfaces train", "manyfaces data convert", "Resume"):
        assert words in told
    assert len(told.splitlines()) <= 24
    assert all(len(line) <= 100 for line in told.splitlines())


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "manyfaces",
        "torch",
        "deepspeed",
        "ray",
        "nvidia-dali-cuda130",
    ]
    assert all(re.fullmatch(r"\S+ (\d+\.\S+|not installed)", line) for line in lines)


@pytest.mark.parametrize("words", verbs(), ids=" ".join)
def test_every_verb_has_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--help"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"Usage: {' '.join(['manyfaces', *words])} ")
    if "Commands:" in told:
        assert "..." not in told.split("Commands:")[1], "a summary is cut off"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], "manyfaces: no verb 'trian'; did you mean train? the verbs are train, check,"),
        (["xyz"], "manyfaces: no verb 'xyz'; the verbs are train, check, evaluate, export, latency, report"),
        (["data"], "manyfaces data: a verb is missing; the verbs are convert, synth,"),
        (["data", "convrt", "a", "b"], "manyfaces data: no verb 'convrt'; did you mean convert?"),
        (["head", "reprot"], "manyfaces head: no verb 'reprot'; did you mean report?"),
        (["--verson"], "no such option: --verson (Possible options: --version); see manyfaces --help"),
        (["train"], "missing argument 'CONFIG'; see manyfaces train --help"),
        (["check"], "missing argument 'CONFIG', or --explain KEY; see manyfaces check --help"),
        (["train", "demo", "--adress", "x"], "no such option: --adress (Possible options: --address);"),
        (["train", "demo", "--address"], "option '--address' requires an argument;"),
        (["submit", "demo", "--address", "host:8265"], "--address host:8265: the scheme is missing; give --address http://host:8265"),
        (["evaluate", "runs/x"], "runs/x: no run there; expected a folder RUN"),
        (["evaluate", "x", "train.epochs=3"], "x: no run there; expected a folder RUN"),
        (["evaluate", "x", "--pairs", "y", "--batch-size", "0"], "invalid value for '--batch-size': must be a whole number above 0, not '0';"),
        (["data", "pairs", "a", "b", "--count", "x"], "invalid value for '--count': must be a whole number above 0, not 'x'; see manyfaces data pairs --help"),
        (["data", "pairs", "a", "b", "--seed", "1.5"], "invalid value for '--seed': must be a whole number, not '1.5';"),
        (["data", "convert", "a", "b", "--reencode", "101"], "invalid value for '--reencode': must be a JPEG quality from 1 to 100, not '101';"),
        (["data", "synth", "a", "--images", "3"], "missing option '--identities';"),
        (["data", "stats", "a", "b"], "got unexpected extra argument(s) (b);"),
        (["data", "forget", "a"], "nothing to forget: give --identity ID or --keys FILE"),
        (["check", "demo", "--memory-gb", "much"], "invalid value for '--memory-gb': must be a number above 0, not 'much';"),
        (["check", "demo", "--images-per-s", "0"], "invalid value for '--images-per-s': must be a number above 0, not '0';"),
        (["check", "demo", "--images-per-s", "inf"], "invalid value for '--images-per-s': must be a number above 0, not 'inf';"),
        (["check", "demo", "--mtbf-hours", "0"], "invalid value for '--mtbf-hours': must be a number above 0, not '0';"),
        (["check", "demo", "--restart-seconds", "-1"], "invalid value for '--restart-seconds': must be a number above 0, not '-1';"),
        (["check", "demo", "--explain", "heat"], "heat: no mapping of the configuration; did you mean head?"),
        (["head", "remove", "a", "b"], "manyfaces head remove: give either --identity NAME... or --names FILE"),
        (["head", "remove", "a", "b", "--identity", "x", "--names", "y"], "manyfaces head remove: give either"),
        (["check", "demo", "train.epochs"], "override 'train.epochs': is not of the form path.to.key=value"),
        (["check", "nowhere.yaml"], "nowhere.yaml: no such file; shipped recipes are demo, faces/small_cpu,"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(mistake: Callable[..., str], words: list[str], line: str) -> None:
    assert mistake(*words).startswith(line)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "demo", "train.epochs=3", "run.name=-x", "--address", "auto"],
        ["train", "demo", "--address", "auto", "train.epochs=3", "run.name=-x"],
        ["train", "--address=auto", "demo", "train.epochs=3", "run.name=-x"],
        ["train", "demo", "train.epochs=3", "--address", "auto", "run.name=-x"],
        ["train", "--address", "auto", "--", "demo", "train.epochs=3", "run.name=-x"],
    ],
)
def test_options_stand_in_any_place(mistake: Callable[..., str], words: list[str]) -> None:
    """Told by what is wrong with the words, which thus were read as words."""
    assert mistake(*words).startswith("override 'run.name=-x': run.name: must be text like")


def test_train_gets_words_and_address(trained: list[Config]) -> None:
    words = ["data.path=x-y", "--address", "host:6379", "train.optimizer.lr=1e-3", "run.name=a-b"]
    assert main(["train", "demo", *words]) == 0
    [config] = trained
    assert (config.cluster.address, config.run.name) == ("host:6379", "a-b")
    assert (config.data.path, config.train.optimizer.lr) == ("x-y", 1e-3)


def test_old_spellings_are_noted_once(
    trained: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data.images_per_identity=2", "data.order=pk", "head.triplet.weight=5"]
    assert main(["train", "demo", *words]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(": ")[:2] for line in err.splitlines()] == [
        ["note", "override 'data.images_per_identity=2'"],
        ["note", "override 'head.triplet.weight=5'"],
    ]
    assert trained[0].data.order.model_dump() == {"kind": "pk", "images_per_identity": 2}


def test_a_process_that_starts_anew_notes_old_spellings_once(tmp_path: Path) -> None:
    words = ["data.images_per_identity=2", "data.order=pk", "data.path=nowhere"]
    place = ["cluster.launcher=process", "cluster.gpus_per_worker=0"]
    done = subprocess.run(
        [sys.executable, "-m", "manyfaces.train", "train", "demo", *words, *place],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name not in KEEP_MEMORY},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    told = [line.split(": ")[0] for line in done.stderr.splitlines()]
    assert told == ["note", "error"], done.stderr


def test_foreign_text_is_shown_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Jobs:
        def __init__(self, address: str) -> None:
            pass

        def job(self, job: str) -> Job:
            return Job(job, "a[x]", "FAILED", "[x] :cat: [/nothing]", 1.0, 2.0)

        def status(self, job: Job) -> None:
            return None

        def last_lines(self, job: Job, number: int) -> list[str]:
            return ["a line [y]"]

        def all(self) -> list[Job]:
            return [self.job("id")]

    results = [Result("set[x]", (Quantity("a", "a", "[a]"),), {"a": 0.5})]
    checkpoint = Path("runs[x]/r/checkpoints/step-00000001")
    monkeypatch.setattr("manyfaces.cluster.jobs.Jobs", Jobs)
    monkeypatch.setattr(evaluate_run, "evaluate_run", lambda *_: (checkpoint, checkpoint, results))
    assert main(["jobs", "status", "id"]) == main(["jobs", "list"]) == 0
    assert main(["evaluate", "runs[x]/r", "--pairs", "b.bin"]) == 0
    told = capsys.readouterr().out
    for text in (
        "[x] :cat: [/nothing]",
        "run        a[x]\n",
        "  a[x]\n",
        "a line [y]",
        "set[x]",
        "[a]",
        f"weights     {checkpoint}\n",
    ):
        assert text in told


def test_check_prints_the_tree_and_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # no dataset here: the recipe's own numbers
    assert main(["check", "demo", "cluster.workers=2", "--memory-gb", "10"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for words in ("kind: mobilefacenet", "7,200 images of 600 identities", "cheapest in 9.31 GiB"):
        assert words in out
    triplet = ["objective=triplet", "data.order=pk"]
    assert main(["check", "demo", *triplet]) == 0
    assert "head settings" not in capsys.readouterr().out
    for words in (["check", "demo"], ["check"]):  # a recipe is not needed
        assert main([*words, "--explain", "head.margin"]) == 0
        assert "kind: cosface - " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (UserError("no [bold]such\\thing"), 2, "error: no [bold]such\\thing"),
        (OSError(28, "No space left on device", "a/b"), 2, "error: a/b: No space left on device"),
        (StoppedError("stopped by SIGTERM; go on"), 75, "stopped by SIGTERM; go on"),
        (KeyboardInterrupt(), 130, "stopped; the same command resumes from the last checkpoint"),
    ],
)
def test_what_a_run_ends_with(
    raised: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(config: Config, console: object, takeover: bool) -> None:
        raise raised

    module: Any = type(sys)("manyfaces.train.run")
    module.run = run
    monkeypatch.setitem(sys.modules, "manyfaces.train.run", module)
    assert main(["train", "demo"]) == code
    assert capsys.readouterr().err.splitlines() == [line]


def test_what_does_not_resume_does_not_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(address: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("manyfaces.cluster.jobs.Jobs", interrupted)
    assert main(["jobs", "list"]) == 130
    assert capsys.readouterr().err.splitlines() == ["stopped"]


def test_a_fault_of_ours_has_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = type(sys)("manyfaces.train.run")
    monkeypatch.setitem(sys.modules, "manyfaces.train.run", module)
    with pytest.raises(ImportError, match="cannot import name 'run'"):
        main(["train", "demo"])


def test_several_words_after_one_option(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from manyfaces.train.curation import head_edit

    wanted: list[list[str]] = []

    def remove(checkpoint: Path, out: Path, names: Any) -> dict[str, int]:
        wanted.append([str(checkpoint), str(out), *(names[i] for i in range(len(names)))])
        return {"identities": 1}

    monkeypatch.setattr(head_edit, "remove", remove)
    for words in (
        ["ckpt", "out", "--identity", "a", "b c", "d"],
        ["ckpt", "out", "--identity", "a", "--identity", "b c", "d"],
        ["--identity=a", "ckpt", "out", "--identity", "b c", "d"],
    ):
        assert main(["head", "remove", *words]) == 0
    assert wanted == [["ckpt", "out", "a", "b c", "d"]] * 3
    assert "out: 1 identities" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "imported"),
    [
        ([], []),
        (["--help"], []),
        (["data", "index", "--help"], []),
        (["data", "convert", "--help"], ["pyarrow"]),  # the sources say what their options are
        (["check", "demo"], []),
    ],
)
def test_nothing_heavy_is_imported(words: list[str], imported: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from manyfaces.train.cli.main import main\n"
        f"assert main({words!r}) == 0\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == str(imported)


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "manyfaces.train", "trian"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: manyfaces: no verb 'trian'; did you mean train?")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tr", ["train"]),
        ("data c", ["convert", "check", "compact"]),
        ("train quick/tri", ["quick/triplet"]),
        ("check d", ["demo", "data/"]),
        ("train demo train.optimizer.l", ["train.optimizer.lr=", "train.optimizer.layer_decay="]),
        ("check demo --ex", ["--explain"]),
    ],
)
def test_a_shell_completes_verbs_recipes_and_keys(
    typed: str, offered: list[str], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    words = f"manyfaces {typed}"
    environment = {
        **os.environ,
        "_MANYFACES_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "manyfaces.train"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == offered


def test_no_screen_shows_credentials_and_what_hides_them_is_no_recipe(
    capsys: pytest.CaptureFixture[str], mistake: Callable[..., str], tmp_path: Path
) -> None:
    words = ["tracking.uri=http://u:PLANTED@h", "evaluation.pairs=['https://h/x?token=PLANTED']"]
    assert main(["check", "demo", *words]) == 0
    out, err = capsys.readouterr()
    assert "PLANTED" not in out + err
    assert "note: credentials stand in tracking.uri, evaluation.pairs: no file" in err
    (tmp_path / "shown.yaml").write_text("base: demo\ntracking: {uri: 'http://***@h'}\n")
    told = "tracking.uri: the credentials of its URL were hidden when this configuration was writt"
    assert mistake("check", str(tmp_path / "shown.yaml")).startswith(told)
    assert "PLANTED" not in mistake("data", "check", "nothing://u:PLANTED@h/faces")
    assert "PLANTED" not in mistake("check", "demo", "train.data=http://u:PLANTED@h")
