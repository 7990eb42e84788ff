"""No secret goes into a manifest, however it is spelt, and no other cluster's address into a job."""

import subprocess
from pathlib import Path

import pytest

from manyfaces.cluster.manifests.slurm import SCRIPT
from manyfaces.train.cli.main import main


def test_a_token_that_is_no_url_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cluster.workers=1", "cluster.gpus_per_worker=0", "data.path=hf_" + "x1" * 15]
    assert main(["manifest", "slurm", "demo", "--time", "24:00:00", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: data.path: a secret stands in it, and a manifest is kept and")


def test_an_index_with_a_password_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = tmp_path / "manyfaces-1-py3-none-any.whl"
    wheel.touch()
    constraints = tmp_path / "constraints.txt"
    constraints.touch()
    files = ["--wheel", wheel, "--constraints", constraints, "--context", tmp_path]
    index = ["--torch-index", "https://user:PLANTED@index.example/simple"]
    assert main(["manifest", "dockerfile", *map(str, files), *index]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: --torch-index https://***@index.example/simple: credentials")


def test_the_batch_script_forgets_where_it_was_submitted() -> None:
    begin = SCRIPT.index("unset ")
    assert begin < SCRIPT.index("srun --")
    line = SCRIPT[begin:].splitlines()[0]
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")
    shell = f"{line}; env | grep -c '^RAY_' || true"
    environment = {"PATH": "/usr/bin:/bin", **dict.fromkeys(names, "x")}
    done = subprocess.run(
        ["bash", "-c", shell], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "0\n"
