"""Section `run`: the run's name, its place and its seed."""

from typing import Annotated, ClassVar

from pydantic import Field

from manyfaces.configs.node import (
    NODE_PATH,
    NOTHING,
    ON_FILE_SYSTEM,
    PATH,
    RESULTS,
    Decides,
    Node,
)


class Run(Node):
    """The run's name, its place and its seed."""

    decides: ClassVar[Decides] = NOTHING

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "first"
    """The run's folder under `dir`. Typing the same name again resumes the run; other data, another
    model, head, optimiser or seed is then refused with the keys that differ."""
    dir: Annotated[str, PATH] = "runs"
    """Folder of all runs; on a cluster a path that every node sees. At a URL (`s3://BUCKET/runs`,
    `gs://...`) each committed checkpoint and the record are sent there while training goes on (one
    that is committed while another is still on its way is left out, but for the last), and the same
    command goes on from there on a fresh machine. One process writes a run at a time:
    another one is refused, or stopped by S3's `If-None-Match` where both begin at once."""
    work_dir: Annotated[str, NODE_PATH, ON_FILE_SYSTEM] = "~/.cache/manyfaces/runs"
    """Where a run whose `dir` is a URL works, in `work_dir/s3/BUCKET/runs/NAME`; best on a disk
    that outlasts a restart. Workers on several nodes need one that every node sees. MLflow's own
    database stands there too and is not sent: name a server in `tracking.uri` where a run that goes
    on elsewhere has to stay one run of MLflow's. What `resume_from` names by a URL is fetched to
    `work_dir/fetched`."""
    seed: Annotated[int, Field(ge=0, lt=2**32), RESULTS] = 0
    """Seed of the weights, the order, the augmentation and the sampled classes."""
    resume_from: Annotated[str | None, PATH] = None
    """A run, its best checkpoint (`runs/OLD@best`), or any of them
    (`runs/OLD/checkpoints/step-...`), to start a new run name from; a run or a checkpoint may be at
    a URL."""
