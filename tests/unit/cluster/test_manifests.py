"""Manifests: KubeRay's own definition accepts them, the scripts in them do what they say, nothing in
them is a secret, and what cannot be told is asked for in one line."""

import hashlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from waiting import wait_until

from manyfaces.cluster.manifests.nodes import nodes
from manyfaces.cluster.manifests.text import commented_yaml, dns_name
from manyfaces.configs.load import load, load_stored
from manyfaces.train.cli.main import main

DIGEST = "sha256:" + "a1" * 32
IMAGE = f"registry.example/manyfaces@{DIGEST}"
NUMBERS = ("cluster.workers=16", "cluster.gpus_per_worker=1")
SHARED = ("data.path=/shared/faces", "run.dir=/shared/runs", "evaluation.pairs=[]")
KUBERAY = Path(__file__).resolve().parents[2] / "fixtures" / "kuberay_rayjob.yaml"
"""KubeRay 1.7.0's definition of the fields that a RayJob of ours has, and of no other."""
SECRET = "hunter2"
LIMIT_S = 60.0


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `manyfaces manifest` prints for these words."""

    def text(*words: object) -> str:
        code = main(["manifest", *map(str, words)])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return text


@pytest.fixture
def rayjob(printed: Callable[..., str]) -> Callable[..., tuple[dict[str, str], dict[str, Any]]]:
    """The ConfigMap's files and the RayJob for these words."""

    def read(*words: object) -> tuple[dict[str, str], dict[str, Any]]:
        text = printed("kubernetes", "demo", *NUMBERS, *SHARED, "--image", IMAGE, *words)
        files, job = yaml.safe_load_all(text)
        assert (files["kind"], job["kind"]) == ("ConfigMap", "RayJob")
        return files["data"], job

    return read


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    path = tmp_path / "dist" / "manyfaces-0.1.0-py3-none-any.whl"
    path.parent.mkdir()
    path.write_bytes(b"a wheel")
    return path.relative_to(tmp_path)


CLAIM = ("--claim", "datasets:/shared")
EVERYTHING = (
    *CLAIM,
    *(
        "--spot",
        "gke",
        "--node-selector",
        "zone=b",
        "--toleration",
        "faces=yes",
        "--toleration",
        "x",
    ),
    *("--token-secret", "ray", "--mlflow-secret", "mlflow", "--store-secret", "s3"),
    *("--memory-gb", "500", "--deadline-hours", "24", "--namespace", "faces", "--retries", "7"),
)


@pytest.mark.parametrize("words", [CLAIM, EVERYTHING, (*CLAIM, "cluster.workers={min: 4, max: 8}")])
def test_kuberay_accepts_the_rayjob(rayjob: Callable[..., Any], words: tuple[str, ...]) -> None:
    schema = yaml.safe_load(KUBERAY.read_text())
    _, job = rayjob(*words)
    jsonschema.validate(job, schema)
    for path, value in (
        (("spec", "backoffLimit"), "3"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "none"),
        (("spec", "rayClusterSpec", "numWorkers"), 2),
    ):
        wrong = deepcopy(job)
        place = wrong
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_pods_have_what_the_configuration_says(rayjob: Callable[..., Any]) -> None:
    files, job = rayjob(
        *EVERYTHING,
        "cluster.workers={min: 8, max: 24}",
        "cluster.threads_per_worker=6",
        "data.decode_threads=2",
        "cluster.grace_s=45.5",
    )
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    pod = group["template"]["spec"]
    (worker,) = pod["containers"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (1, 1, 3)
    assert cluster["enableInTreeAutoscaling"] is True
    assert worker["image"] == IMAGE
    wanted = {"cpu": "64", "memory": "500G", "nvidia.com/gpu": "8"}
    assert worker["resources"] == {"requests": wanted, "limits": wanted}
    assert group["rayStartParams"]["num-cpus"] == "64"
    assert pod["nodeSelector"] == {"zone": "b", "cloud.google.com/gke-spot": "true"}
    assert {each["key"] for each in pod["tolerations"]} == {
        "nvidia.com/gpu",
        "cloud.google.com/gke-spot",
        "faces",
        "x",
    }
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray"}
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (7, 24 * 3600)
    assert 'RAY_JOB_STOP_WAIT_TIME_S: "51"' in spec["runtimeEnvYAML"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    for each in (head, pod):
        assert each["terminationGracePeriodSeconds"] > 45.5
        volumes = {volume["name"]: volume for volume in each["volumes"]}
        mounts = {m["mountPath"]: m["name"] for m in each["containers"][0]["volumeMounts"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        claim = volumes[mounts["/shared"]]["persistentVolumeClaim"]
        assert claim == {"claimName": "datasets"}
        references = [e["valueFrom"]["secretKeyRef"] for e in each["containers"][0]["env"]]
        assert references == [{"name": "mlflow", "key": k} for k in ("username", "password")]
    assert "tolerations" not in head
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    config = load_stored(yaml.safe_load(files["config.yaml"]), "config.yaml")
    assert config.data.path == "/shared/faces"
    assert config.cluster.grace_s == 45.5


def test_a_dataset_at_a_url_has_a_cache_on_each_node(rayjob: Callable[..., Any]) -> None:
    files, job = rayjob(*CLAIM, "data.path=s3://bucket/faces", "data.cache_gb=750")
    pod = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["cache"]["emptyDir"] == {"sizeLimit": "750G"}
    assert mounts["cache"] == yaml.safe_load(files["config.yaml"])["data"]["cache_dir"]


def test_the_scripts_of_a_pod_are_sound(rayjob: Callable[..., Any], tmp_path: Path) -> None:
    files, job = rayjob(*CLAIM)
    for name in ("train.sh", "stop.sh", "drain.sh"):
        (tmp_path / name).write_text(files[name].replace("/tmp/", f"{tmp_path}/"))
        subprocess.run(["sh", "-n", tmp_path / name], check=True)
        assert f"/etc/manyfaces/{name}" in yaml.safe_dump(job)
    stop = ["sh", str(tmp_path / "stop.sh")]
    assert subprocess.run(stop, timeout=LIMIT_S, check=False).returncode == 0  # no driver yet
    stub(tmp_path / "python", 'trap "sleep 0.3; echo saved > $0.said; exit 75" TERM; ready; hold')
    path = f"{tmp_path}:{os.environ['PATH']}"
    driver = subprocess.Popen(["sh", tmp_path / "train.sh"], env={**os.environ, "PATH": path})
    try:
        wait_until((tmp_path / "python.ready").exists)
        reaped: list[int] = []
        with subprocess.Popen(stop) as stopping:
            reaped.append(driver.wait(timeout=LIMIT_S))
            assert stopping.wait(timeout=LIMIT_S) == 0
        assert reaped == [75]
        assert (tmp_path / "python.said").read_text() == "saved\n"
    finally:
        driver.kill()
        driver.wait()


HOLD = """\
ready() { echo > "$0.ready"; }
hold() { for _ in $(seq 1200); do sleep 0.05; done; }
"""


def stub(path: Path, script: str) -> None:
    """A command of this name that does what the script says."""
    path.write_text(f"#!/bin/bash\n{HOLD}{script}\n")
    path.chmod(0o755)


@pytest.fixture
def slurm(printed: Callable[..., str], tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs the batch script as Slurm would, with a driver that does what `driver` says, and sends
    it a signal once that is ready: its exit code, and what `scontrol` was asked."""
    script = tmp_path / "job.sh"
    text = printed(
        "slurm", "demo", *NUMBERS, "--time", "1-00:00:00", "--setup", "export SETUP=done"
    )
    script.write_text(text)
    subprocess.run(["bash", "-n", script], check=True)
    stub(tmp_path / "scontrol", 'echo "$@" >> "$0.log"; [[ $1 == show ]] && echo node1; true')
    # It runs the task of the first node.
    stub(tmp_path / "srun", 'while [[ $1 == --* ]]; do shift; done; exec "$@"')
    stub(
        tmp_path / "ray",
        '[[ $1 == symmetric-run ]] || exit 0; echo "$@" > "$0.log"; '
        'while [[ $1 != -- ]]; do shift; done; shift; "$@"',
    )

    def knows_its_driver() -> bool:
        return any(path.stat().st_size for path in tmp_path.glob("tmp.*/pid"))

    def run(driver: str, number: int | None = None) -> tuple[int, str]:
        stub(tmp_path / "python", driver)
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "TMPDIR": str(tmp_path),
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_NUM_NODES": "2",
        }
        with subprocess.Popen(["bash", script], env=environment) as job:
            try:
                if number is not None:
                    wait_until((tmp_path / "python.ready").exists)
                    wait_until(knows_its_driver)
                    job.send_signal(number)
                code = job.wait(timeout=LIMIT_S)
            finally:
                job.kill()
        return code, (tmp_path / "scontrol.log").read_text()

    return run


SAVES = 'trap "echo USR1 > $0.said; exit 75" USR1; trap "echo TERM > $0.said; exit 75" TERM; '
REQUEUED = "requeue 123456"


def test_usr1_before_the_limit_saves_and_queues_again(
    slurm: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, asked = slurm(SAVES + 'cp "$4" "$0.config"; ready; hold', signal.SIGUSR1)
    assert (code, REQUEUED in asked) == (75, True)
    assert (tmp_path / "python.said").read_text() == "USR1\n"
    stored = yaml.safe_load((tmp_path / "python.config").read_text())
    assert load_stored(stored, "config.yaml").cluster.workers == 16
    told = (tmp_path / "ray.log").read_text()
    assert "--address node1:23456 --min-nodes 2" in told
    assert "--num-gpus=8 --dashboard-host=127.0.0.1" in told


def test_term_saves_and_ends_for_good(
    slurm: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, asked = slurm(SAVES + "ready; hold", signal.SIGTERM)
    assert (code, REQUEUED in asked) == (75, False)
    assert (tmp_path / "python.said").read_text() == "TERM\n"


@pytest.mark.parametrize(("ends", "again"), [(75, True), (0, False), (1, False), (2, False)])
def test_only_a_run_that_goes_on_is_queued_again(
    slurm: Callable[..., tuple[int, str]], ends: int, again: bool
) -> None:
    code, asked = slurm(f"[[ $SETUP == done ]] && exit {ends}")
    assert (code, REQUEUED in asked) == (ends, again)


def test_slurm_is_asked_for_what_the_configuration_says(printed: Callable[..., str]) -> None:
    text = printed(
        *("slurm", "demo", "cluster.workers={min: 8, max: 32}", "cluster.gpus_per_worker=1"),
        *("cluster.grace_s=60", "cluster.threads_per_worker=7", "--time", "4:00:00"),
        *("--partition", "gpu", "--account", "faces", "--option", "--constraint=h100"),
    )
    asked = re.findall(r"^#SBATCH (\S+)$", text, re.MULTILINE)
    assert {
        *("--nodes=1-4", "--ntasks-per-node=1", "--gpus-per-node=8", "--cpus-per-task=112"),
        *("--signal=B:USR1@180", "--requeue", "--exclusive", "--open-mode=append"),
        *("--time=4:00:00", "--partition=gpu", "--account=faces", "--constraint=h100"),
    } <= set(asked)


@pytest.mark.parametrize(
    ("provider", "words"),
    [
        ("aws", ("--region", "us-west-2", "--spot")),
        ("gcp", ("--region", "us-central1", "--zone", "us-central1-a", "--project", "p", "--spot")),
    ],
)
def test_ray_accepts_the_file_of_ray_up(
    printed: Callable[..., str], wheel: Path, provider: str, words: tuple[str, ...]
) -> None:
    text = printed(
        *("ray-up", "demo", "cluster.workers={min: 8, max: 32}", "cluster.gpus_per_worker=1"),
        *("--provider", provider, "--worker-type", "big", "--machine-image", "image", *words),
        *("--wheel", wheel, "--constraints", "constraints.txt", "--setup", "mount /shared"),
    )
    tree = yaml.safe_load(text)
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(tree, schema)
    workers = tree["available_node_types"]["workers"]
    assert (workers["min_workers"], workers["max_workers"], tree["max_workers"]) == (1, 4, 4)
    assert workers["resources"] == {"CPU": 64, "GPU": 8}
    assert "spot" in str(workers["node_config"]).lower()
    assert "spot" not in str(tree["available_node_types"]["head"]).lower()
    (head,) = (line for line in tree["head_start_ray_commands"] if " --head" in line)
    assert "RAY_AUTH_MODE=token" in head
    assert "--dashboard-host=127.0.0.1" in head
    assert hashlib.sha256(b"a wheel").hexdigest() in text
    pip = [line for line in tree["setup_commands"] if "pip install" in line]
    assert all("--constraint /home/ubuntu/manyfaces/constraints.txt" in line for line in pip)
    assert tree["setup_commands"][-1] == "mount /shared"


@pytest.mark.parametrize("build", ["cpu", "cuda"])
def test_a_dockerfile_is_pinned(printed: Callable[..., str], wheel: Path, build: str) -> None:
    words = ("--wheel", wheel, "--constraints", "constraints.txt", "--extra", "s3")
    text = printed("dockerfile", *words, "--build", build, "--base", f"python@{DIGEST}")
    lines = text.splitlines()
    assert f"ARG BASE=python@{DIGEST}" in lines
    assert f"COPY {wheel} constraints.txt /opt/manyfaces/" in lines
    (check,) = (line for line in lines if "sha256sum" in line)
    sums = subprocess.run(
        ["bash", "-c", check.removeprefix("RUN ").partition("|")[0]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert [line.split() for line in sums] == [
        [hashlib.sha256(path.read_bytes()).hexdigest(), f"/opt/manyfaces/{path.name}"]
        for path in (wheel, Path("constraints.txt"))
    ]
    pip = [line for line in lines if "pip install" in line]
    assert len(pip) == (2 if build == "cpu" else 1)
    pins = "pip install --no-cache-dir --constraint /opt/manyfaces/constraints.txt "
    assert all(line.startswith(f"RUN {pins}") for line in pip)
    assert pip[-1].endswith(f"'/opt/manyfaces/{wheel.name}[s3]'")
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["1000:1000"]


KUBERNETES = ("kubernetes", "demo", "--image", IMAGE)
SLURM = ("slurm", "demo", *NUMBERS, "--time", "1:00:00")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (KUBERNETES, "cluster.gpus_per_worker is auto"),
        ((*KUBERNETES, "cluster.gpus_per_worker=1"), "cluster.workers is auto"),
        ((*KUBERNETES, *NUMBERS, "cluster.launcher=process"), "set cluster.launcher=ray"),
        ((*KUBERNETES, *NUMBERS, *SHARED), "is on no volume that every pod sees"),
        ((*KUBERNETES, *NUMBERS, "--claim", "shared"), "--claim shared: is not CLAIM:/FOLDER"),
        ((*SLURM, "--workers-per-node", "3"), "does not divide cluster.workers (16)"),
        ((*SLURM, "--cpus-per-node", "4"), "--cpus-per-node 4 is too few"),
        ((*SLURM, "--time", "2"), "--time 2: the job would be asked to stop 150 s before its end"),
        ((*SLURM, "--time", "soon"), "--time soon: is no time limit of Slurm"),
        ((*SLURM[:-1], "x", "--partition"), "--partition"),
        (("kubernetes", "demo", *NUMBERS, "--image", "faces"), "give a tag, or best the digest"),
        (("kubernetes", "demo", *NUMBERS, "--image", "r:5000/faces:latest"), "give a tag"),
        (("kubernetes", "demo", *NUMBERS, "--image", "faces@sha256:12"), "64 hexadecimal digits"),
        (("kubernetes", "demo", *NUMBERS), "missing option '--image'"),
        ((*SLURM, "--out", "none/job.sh"), "--out none/job.sh: there is no folder none"),
        (("dockerfile", "--wheel", "none.whl"), "--wheel none.whl: is no wheel of manyfaces"),
    ],
)
def test_what_cannot_be_told_is_one_line(
    words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["manifest", *words]) == 2
    out, err = capsys.readouterr()
    [line] = err.splitlines()
    assert (out, line.startswith("error: ")) == ("", True)
    assert told in line


@pytest.mark.parametrize("verb", [(*KUBERNETES, *CLAIM, *SHARED, *NUMBERS), SLURM])
def test_no_secret_goes_into_a_manifest(
    verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"tracking.uri=https://me:{SECRET}@mlflow.example"
    assert main(["manifest", *verb, uri]) == 2
    out, err = capsys.readouterr()
    assert (out, SECRET in err) == ("", False)
    assert "tracking.uri: a secret stands in it" in err.splitlines()[-1]


def test_a_file_is_written_instead(printed: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "job.sh"
    text = printed(*SLURM)
    assert printed(*SLURM, "--out", path) == ""
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("workers", "per_node", "expected"),
    [
        ("64", None, (8, 8, 8)),
        ("12", None, (2, 2, 6)),
        ("{min: 4, max: 10}", None, (2, 5, 2)),
        ("3", None, (1, 1, 3)),
        ("64", 4, (16, 16, 4)),
    ],
)
def test_workers_are_divided_among_nodes(
    workers: str, per_node: int | None, expected: tuple[int, int, int]
) -> None:
    config = load("demo", [f"cluster.workers={workers}", "cluster.gpus_per_worker=0"])
    found = nodes(config, per_node, None)
    assert (found.least, found.most, found.workers) == expected
    assert found.gpus == 0


def test_names_are_such_as_kubernetes_takes() -> None:
    assert dns_name("MS1MV3_r50.b") == "ms1mv3-r50-b"
    assert dns_name("7._") == "run-7"


def test_comments_change_nothing() -> None:
    tree = {"a": [{"key": 1, "b": "x\ny\n"}], "key": {"c": None}}
    text = commented_yaml([tree, tree], "one\ntwo", {"key": "about it"})
    assert list(yaml.safe_load_all(text)) == [tree, tree]
    assert text.startswith("# one\n# two\na:\n")
    assert "# about it\n- key: 1\n" in text
