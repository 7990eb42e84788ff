"""`manyfaces manifest VERB ...`: files for other systems, to read and then apply."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from manyfaces.configs.errors import UserError
from manyfaces.train.cli.options import Recipe, Words
from manyfaces.train.cli.output import load_config, note
from manyfaces.train.cli.verbs import Verbs, above_zero, positive
from manyfaces.train.cli.wheels import wheels

if TYPE_CHECKING:
    from manyfaces.cluster.manifests.install import Pinned
    from manyfaces.cluster.manifests.nodes import Nodes
    from manyfaces.configs.schema import Config

app = typer.Typer(cls=Verbs)

WorkersPerNode = Annotated[
    int | None,
    typer.Option(
        parser=positive,
        metavar="N",
        help="Workers of each node; default: the largest number up to 8 that divides "
        "cluster.workers.",
    ),
]
CpusPerNode = Annotated[
    int | None,
    typer.Option(
        parser=positive,
        metavar="N",
        help="Cores of each node; default: cluster.threads_per_worker and data.decode_threads of "
        "its workers.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write there, over what is there; default: the screen."),
]
Setup = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COMMAND",
        help="A command that prepares each machine, such as `module load cuda`; may be repeated.",
    ),
]
WheelFile = Annotated[
    Path,
    typer.Option(
        "--wheel",
        metavar="FILE",
        help="The wheel of manyfaces, as `pip wheel --no-deps -w dist .` makes it.",
    ),
]
Constraints = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Versions of all that it needs; default: the checkout's own."
    ),
]
Extras = Annotated[
    list[str] | None,
    typer.Option(
        "--extra", metavar="NAME", help="gcs, http, s3 or timm, as the run needs; may be repeated."
    ),
]
Image = Annotated[
    str,
    typer.Option(
        metavar="NAME@sha256:DIGEST",
        help="The image that it runs in, as `manyfaces manifest dockerfile` builds it.",
    ),
]
Claims = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CLAIM:/FOLDER",
        help="A persistent volume claim that every pod mounts there; may be repeated.",
    ),
]
JobName = Annotated[
    str | None, typer.Option(metavar="NAME", help="The RayJob's name; default: run.name.")
]
Namespace = Annotated[str | None, typer.Option(metavar="NAME")]
MemoryGB = Annotated[
    float | None,
    typer.Option(parser=above_zero, metavar="GB", help="Memory of each worker's pod."),
]
SpotKind = Annotated[
    Literal["aks", "eks", "gke", "karpenter"] | None,
    typer.Option(help="Place the workers on spot nodes of this kind of cluster."),
]
NodeSelectors = Annotated[
    list[str] | None,
    typer.Option(metavar="LABEL=VALUE", help="Label of the workers' nodes; may be repeated."),
]
Tolerations = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TAINT[=VALUE]", help="Taint that the workers' pods bear; may be repeated."
    ),
]
TokenSecret = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Secret with Ray's token in auth_token; default: KubeRay's own.",
    ),
]
MlflowSecret = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Secret with MLflow's username and password."),
]
StoreSecret = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Secret whose keys are environment variables, such as AWS_ACCESS_KEY_ID.",
    ),
]
Retries = Annotated[
    int,
    typer.Option(min=0, metavar="N", help="New clusters after a failure, at most."),
]
DeadlineHours = Annotated[
    float | None,
    typer.Option(parser=above_zero, metavar="HOURS", help="End the job after so long."),
]
TimeLimit = Annotated[
    str,
    typer.Option(
        metavar="LIMIT", help="Time limit of a part of the run, as Slurm has it: 24:00:00."
    ),
]
Partition = Annotated[str | None, typer.Option(metavar="NAME")]
Account = Annotated[str | None, typer.Option(metavar="NAME")]
SbatchOptions = Annotated[
    list[str] | None,
    typer.Option(
        metavar="--NAME=VALUE", help="Another option of sbatch, as it is; may be repeated."
    ),
]
Build = Annotated[Literal["cpu", "cuda"], typer.Option(help="With which PyTorch.")]
Base = Annotated[
    str | None,
    typer.Option(
        metavar="IMAGE[@sha256:DIGEST]",
        help="What it is built on; default: python:3.11-bookworm, by its tag.",
    ),
]
TorchIndex = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Package index that has PyTorch; default: PyTorch's own for the CPU, PyPI for CUDA.",
    ),
]
Context = Annotated[
    Path,
    typer.Option(metavar="FOLDER", help="Where `docker build` will run; default: here."),
]
Provider = Annotated[Literal["aws", "gcp"], typer.Option(help="Whose cloud.")]
Region = Annotated[str, typer.Option(metavar="NAME", help="us-west-2, us-central1, ...")]
WorkerType = Annotated[
    str, typer.Option(metavar="NAME", help="Machine of a node: p5.48xlarge, a3-highgpu-8g, ...")
]
MachineImage = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What the machines boot, with the driver of their GPUs: ami-..., or "
        "projects/.../images/... .",
    ),
]
Zone = Annotated[str | None, typer.Option(metavar="NAME", help="us-west-2a; needed on Google's.")]
Project = Annotated[str | None, typer.Option(metavar="ID", help="Project; needed on Google's.")]
HeadType = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Machine of the head; default: 8 cores, 32 GiB."),
]
Spot = Annotated[bool, typer.Option("--spot", help="Workers on machines that may be taken away.")]
DiskGB = Annotated[int, typer.Option(parser=positive, metavar="GB", help="Disk of each machine.")]
IdleMinutes = Annotated[
    float,
    typer.Option(
        parser=above_zero,
        metavar="MINUTES",
        help="Machines above the smallest number go when they had nothing to do for so long.",
    ),
]
SshUser = Annotated[str, typer.Option(metavar="NAME")]


@app.callback()
def manifest() -> None:
    """Print what runs a job elsewhere, to read and then apply.

    Numbers of nodes, GPUs and cores, paths and times of grace are those of the configuration:
    cluster.workers and cluster.gpus_per_worker have to be numbers in it.
    """


@app.command("kubernetes")
def kubernetes(
    config: Recipe,
    image: Image,
    words: Words = None,
    claim: Claims = None,
    name: JobName = None,
    namespace: Namespace = None,
    workers_per_node: WorkersPerNode = None,
    cpus_per_node: CpusPerNode = None,
    memory_gb: MemoryGB = None,
    spot: SpotKind = None,
    node_selector: NodeSelectors = None,
    toleration: Tolerations = None,
    token_secret: TokenSecret = None,
    mlflow_secret: MlflowSecret = None,
    store_secret: StoreSecret = None,
    retries: Retries = 3,
    deadline_hours: DeadlineHours = None,
    out: Out = None,
) -> None:
    """Print a RayJob for Kubernetes with KubeRay.

    It makes a Ray cluster, runs the training on it and takes it away again. Every path of the
    configuration has to be on a --claim or at a URL. Credentials stay in Secrets, which the pods
    read by name.
    """
    from manyfaces.cluster.manifests.kubernetes import is_by_digest, rayjob
    from manyfaces.cluster.manifests.pods import Settings
    from manyfaces.cluster.manifests.volumes import Claim

    tree = load_config(config, words or ())
    settings = Settings(
        image=image,
        name=name,
        namespace=namespace,
        claims=tuple(map(Claim.of, claim or ())),
        token_secret=token_secret,
        mlflow_secret=mlflow_secret,
        store_secret=store_secret,
        memory_gb=memory_gb,
        spot=spot,
        node_selector=dict(_pair("--node-selector", word) for word in node_selector or ()),
        tolerations=tuple(toleration or ()),
        retries=retries,
        deadline_hours=deadline_hours,
    )
    text = rayjob(tree, _nodes(tree, workers_per_node, cpus_per_node), settings)
    if not is_by_digest(image):
        note(f"--image {image}: a tag may be moved to another image; @sha256:DIGEST may not")
    _give(text, out)


@app.command("slurm")
def slurm(
    config: Recipe,
    time: TimeLimit,
    words: Words = None,
    partition: Partition = None,
    account: Account = None,
    option: SbatchOptions = None,
    setup: Setup = None,
    workers_per_node: WorkersPerNode = None,
    cpus_per_node: CpusPerNode = None,
    out: Out = None,
) -> None:
    """Print a batch script for Slurm.

    It saves a checkpoint before its time is over, and queues itself again. The configuration stands
    in the script as it is now: a later part of the run has the same.
    """
    from manyfaces.cluster.manifests.slurm import Settings, batch_script

    tree = load_config(config, words or ())
    settings = Settings(time, partition, account, tuple(setup or ()), tuple(option or ()))
    _give(batch_script(tree, _nodes(tree, workers_per_node, cpus_per_node), settings), out)


@app.command("dockerfile")
def dockerfile(
    wheel: WheelFile,
    build: Build = "cuda",
    base: Base = None,
    torch_index: TorchIndex = None,
    extra: Extras = None,
    constraints: Constraints = None,
    context: Context = Path(),
    out: Out = None,
) -> None:
    """Print a Dockerfile of the image to run in.

    The wheel and the list of all packages' versions are checked by their SHA-256 when it is built.
    """
    from manyfaces.cluster.manifests.dockerfile import BASE, Settings
    from manyfaces.cluster.manifests.dockerfile import dockerfile as text

    settings = Settings(build, base or BASE, torch_index)
    given = text(_pinned(wheel, constraints, extra), context, settings)
    if "@sha256:" not in settings.base:
        note(
            f"--base {settings.base}: a tag may be moved to another image; "
            f"`docker buildx imagetools inspect {settings.base}` shows its digest"
        )
    _give(given, out)


@app.command("ray-up")
def ray_up(
    config: Recipe,
    provider: Provider,
    region: Region,
    worker_type: WorkerType,
    machine_image: MachineImage,
    wheel: WheelFile,
    words: Words = None,
    zone: Zone = None,
    project: Project = None,
    head_type: HeadType = None,
    spot: Spot = False,
    disk_gb: DiskGB = 200,
    idle_minutes: IdleMinutes = 15.0,
    ssh_user: SshUser = "ubuntu",
    setup: Setup = None,
    extra: Extras = None,
    constraints: Constraints = None,
    workers_per_node: WorkersPerNode = None,
    cpus_per_node: CpusPerNode = None,
    out: Out = None,
) -> None:
    """Print a file for `ray up` on AWS or GCP.

    It makes a Ray cluster, to which jobs are then submitted. The configuration says how many
    machines there are and what each has to have; it is given again when the job is submitted.
    """
    from manyfaces.cluster.manifests.ray_up import Settings
    from manyfaces.cluster.manifests.ray_up import ray_up as text

    tree = load_config(config, words or ())
    settings = Settings(
        provider=provider,
        region=region,
        worker_type=worker_type,
        machine_image=machine_image,
        zone=zone,
        project=project,
        head_type=head_type,
        spot=spot,
        disk_gb=disk_gb,
        idle_minutes=idle_minutes,
        ssh_user=ssh_user,
        setup=tuple(setup or ()),
    )
    nodes = _nodes(tree, workers_per_node, cpus_per_node)
    _give(text(tree, nodes, _pinned(wheel, constraints, extra), settings), out)


app.command()(wheels)


def _nodes(tree: "Config", workers_per_node: int | None, cpus_per_node: int | None) -> "Nodes":
    from manyfaces.cluster.manifests.nodes import nodes

    return nodes(tree, workers_per_node, cpus_per_node)


def _pinned(wheel: Path, constraints: Path | None, extras: list[str] | None) -> "Pinned":
    from manyfaces.cluster.manifests.install import pinned

    return pinned(wheel, constraints, tuple(extras or ()))


def _pair(option: str, word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not key or not equals:
        raise UserError(f"{option} {word}: is not LABEL=VALUE")
    return key, value


def _give(text: str, out: Path | None) -> None:
    if out is None:
        sys.stdout.write(text)
        return
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    from manyfaces.configs.files import write_atomic

    write_atomic(out, text)
    note(f"{out} is written; read it before it is applied")
