"""What a preflight has found: the nodes, the network between them, and what is wrong."""

from pydantic import Field

from manyfaces.cluster.preflight.probes import Answer, Folder, FolderAnswer, System, Told

DATASET, STORE, DECODE = "dataset", "run.dir", "decode"
"""The figures of the probes that are handed in: whether the dataset can be read, whether a run at a
URL can be written, and how fast images are decoded."""


class Wanted(Told):
    """What a run asks of the nodes."""

    folders: tuple[Folder, ...] = ()
    probes: dict[str, str] = Field(default={})
    """Functions by the figure that they find, each as `MODULE:FUNCTION`. They are called with the
    payload, in which `threads` is the number of the node's cores for workers, and return facts for
    JSON: a dataset's `fingerprint`, the `images_per_s` that a node decodes with all its cores or
    GPUs."""
    payload: dict[str, object] = Field(default={}, repr=False)
    """It may hold credentials: it travels where Ray's dashboard does not show it."""
    images_per_s: float | None = None
    """Images a second that all nodes together have to decode."""
    wants_gpus: bool | None = None
    """Whether workers need GPUs; None where those of the cluster decide."""


class NodeReport(Told):
    """What is known of one node."""

    id: str
    """Ray's id of the node."""
    name: str
    address: str
    cpus: float
    gpus: float
    """CPUs and GPUs that Ray gives to workers there."""
    has_workers: bool
    """Whether a run's workers would be placed there; a head often has none."""
    fault: str = ""
    """Why the node does not answer, or no more."""
    system: System | None = None
    clock_skew_s: float | None = None
    """Its clock minus that of the machine which asked."""
    folders: tuple[FolderAnswer, ...] = ()
    answers: dict[str, Answer] = Field(default={})
    """What the probes that were handed in have found, by figure."""


class Pair(Told):
    """Two nodes, by name, and the bytes a second from each to the other at the same time."""

    one: str
    other: str
    bytes_s: float


class Network(Told):
    """What nodes with workers exchange."""

    backend: str
    num_bytes: int
    """Bytes of a message."""
    all_reduce_bytes_s: float | None = None
    """Bus bandwidth of an all-reduce over all nodes."""
    pairs: tuple[Pair, ...] = ()
    faults: dict[str, str] = Field(default={})
    """Why a node, by name, took no part."""


class Problem(Told):
    """Something that is wrong."""

    node: str
    """The node's name; "" for what is wrong with all."""
    figure: str
    """Which figure shows it."""
    what: str
    remedy: str


class Report(Told):
    """What a preflight has found of a cluster."""

    nodes: tuple[NodeReport, ...]
    network: Network | None = None
    """None for a single node."""
    problems: tuple[Problem, ...] = ()
