"""What a person sees of a preflight: figures of all nodes, what is wrong in red, the remedy below."""

import json

import pytest
from rich.console import Console

from manyfaces.cluster.preflight.probes import Answer, FolderAnswer, Gpu, Interface, System
from manyfaces.cluster.preflight.report import Network, NodeReport, Pair, Problem, Report
from manyfaces.train.cli import preflight as verb
from manyfaces.train.cli.main import main
from manyfaces.train.preflight import Asking

SYSTEM = System(
    gpus=(Gpu(name="NVIDIA H100", memory_mib=81920),) * 2,
    driver="580.1",
    torch_gpus=2,
    interface=Interface(name="eth0", mtu=9000, speed_mbit_s=100_000),
    shm_bytes=2 << 30,
    versions={"torch": "2.13.0"},
)


def node(name: str) -> NodeReport:
    return NodeReport(
        id=name,
        name=name,
        address="10.0.0.1",
        cpus=16,
        gpus=2,
        has_workers=True,
        system=SYSTEM,
        clock_skew_s=0.002,
        folders=(
            FolderAnswer(
                key="run.dir", path="/r", free_bytes=5 << 30, write_bytes_s=3e8, seen_by=2
            ),
        ),
        answers={
            "dataset": Answer(facts={"images": 7, "identities": 3, "read_bytes_s": 5e6}),
            "decode": Answer(
                facts={"images_per_s": 9000.0, "each": 4500.0, "per": "GPU", "count": 2}
            ),
        },
    )


PROBLEM = Problem(node="b", figure="run.dir", what="run.dir /r: is full", remedy="make room")
REPORT = Report(
    nodes=(node("a"), node("b")),
    network=Network(
        backend="nccl",
        num_bytes=1 << 28,
        all_reduce_bytes_s=4e10,
        pairs=(Pair(one="a", other="b", bytes_s=5e10),),
    ),
    problems=(PROBLEM,),
)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Report]:
    """The report that the nodes give."""
    reports = [REPORT]
    monkeypatch.setattr(Asking, "report", lambda *_: reports[-1])
    monkeypatch.setattr("manyfaces.cluster.preflight.probes.versions", lambda: SYSTEM.versions)
    return reports


def test_what_is_wrong_is_red_with_its_remedy(
    found: list[Report], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(force_terminal=True, color_system="standard", width=100)
    monkeypatch.setattr(verb, "console", console)
    with console.capture() as shown:
        assert main(["preflight"]) == 2
    lines = shown.get().splitlines()
    assert [line for line in lines if "\x1b[31m" in line and "run.dir" not in line] == []
    [row] = [line for line in lines if "run.dir" in line and "/r" not in line]
    assert row.count("\x1b[31m") == 1
    assert row.index("\x1b[31m") > row.index("GiB free")  # of the second node
    [told] = [line for line in lines if "run.dir /r" in line]
    assert told == "\x1b[31mb: run.dir /r: is full\x1b[0m"
    assert "preflight: faults on 1 of 2 nodes: 1, " in capsys.readouterr().err


def test_every_figure_is_in_the_table(
    found: list[Report], capsys: pytest.CaptureFixture[str]
) -> None:
    found.append(REPORT.model_copy(update={"problems": ()}))
    assert main(["preflight"]) == 0
    out = capsys.readouterr().out
    for text in (
        "2 (NVIDIA H100, 80 GiB)",
        "eth0 10.0.0.1, 100,000 Mbit/s, ",
        "slowest pair 50,000 MB/s",
        "2.00 GiB free",
        "+0.002 s",
        "5.0 GiB free, writes 300 MB/s",
        "7 images of 3, read at 5 MB/s",
        "9,000 images/s, 4,500 a GPU",
        "580.1",
        "nccl, messages of 256 MiB: all-reduce 40,000 MB/s, pairs 50,000 to 50,000 MB/s",
        "all is well on 2 nodes",
    ):
        assert text in out


def test_json_is_all_of_it(found: list[Report], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preflight", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told.pop("ok") is False
    assert Report.model_validate(told) == REPORT


def test_other_versions_here_are_told(
    found: list[Report], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("manyfaces.cluster.preflight.probes.versions", lambda: {"torch": "2.11.0"})
    assert main(["preflight", "--address", "auto"]) == 2
    assert "this machine has" not in capsys.readouterr().out
    assert main(["preflight", "--address", "http://head:8265"]) == 2
    shown = capsys.readouterr()
    assert "all nodes: the nodes have torch 2.13.0, this machine has 2.11.0" in shown.out
    assert "preflight: faults on 1 of 2 nodes: 2, " in shown.err


def test_a_dashboard_without_its_scheme_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preflight", "--address", "host:8265"]) == 2
    assert "the scheme is missing; give --address http://host:8265" in capsys.readouterr().err
