"""`manyfaces preflight`: whether every node of a cluster can do its part of a run."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from manyfaces.cluster.preflight.report import DECODE, STORE, Network, NodeReport, Report
from manyfaces.configs.errors import UserError
from manyfaces.train.cli.options import RecipeOrNot, Words
from manyfaces.train.cli.output import console, load_config, progress, say
from manyfaces.train.cli.verbs import above_zero

if TYPE_CHECKING:
    from rich.table import Table

LABEL_WIDTH, NODE_WIDTH = 16, 34
"""Characters of the figures' names, and of a node's column."""
GIB = 1 << 30
Address = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="The cluster: its dashboard's URL (http://HOST:8265) from elsewhere, `auto` or "
        "HOST:PORT from one of its nodes; default: cluster.address, else this machine alone.",
    ),
]
ImagesPerS = Annotated[
    float | None,
    typer.Option(
        parser=above_zero,
        metavar="RATE",
        help="Images a second of all workers, as a run of this kind records it: nodes that decode "
        "less than their share are told.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print all of it as one line of JSON.")]


def preflight(
    config: RecipeOrNot = None,
    words: Words = None,
    address: Address = None,
    images_per_s: ImagesPerS = None,
    as_json: Json = False,
) -> None:
    """Ask every node of a cluster whether a run can work there.

    Each node tells its GPUs and driver, network, /dev/shm, clock and versions, and how fast it
    decodes. With CONFIG also whether it reads the dataset, whether it can write the run's folder
    and whether all nodes see the same one, and whether there is room for the checkpoints and the
    cache. Nodes with workers measure the bandwidth between them (NCCL on GPUs, gloo on CPUs).
    Nothing is left behind, and runs that go on there are slower while it measures.

    What is wrong is red, with the remedy below the table; the exit code is then 2.
    """
    from manyfaces.cluster.preflight.probes import versions
    from manyfaces.cluster.preflight.verdicts import unlike_here
    from manyfaces.train.cli.submit_checks import refuse_secrets
    from manyfaces.train.preflight import asking, is_dashboard

    tree = None if config is None else load_config(config, words or ())
    if tree is not None:
        address = address or tree.cluster.address
    is_elsewhere = address is not None and is_dashboard(address)
    if tree is not None and is_elsewhere:  # it travels there
        refuse_secrets(tree)
    with progress("asking the nodes") as tell:
        report = asking(tree, images_per_s).report(address, tell)
    # A process on one of the nodes has nothing to compare: the nodes are compared already.
    differing = unlike_here(report, versions()) if is_elsewhere else []
    report = report.model_copy(update={"problems": (*differing, *report.problems)})
    if as_json:
        from manyfaces.cluster.preflight.job import to_json

        print(to_json(report))  # noqa: T201 - for programs, as it is
    else:
        _show(report)
    if report.problems:
        odd = {problem.node for problem in report.problems if problem.node}
        where = f"{len(odd)} of {len(report.nodes)} nodes" if odd else "the cluster"
        raise UserError(f"preflight: faults on {where}: {len(report.problems)}, each told above")


def _show(report: Report) -> None:
    from rich.text import Text

    wide = max((console.width - LABEL_WIDTH) // NODE_WIDTH, 1)
    for first in range(0, len(report.nodes), wide):
        console.print(_table(report, report.nodes[first : first + wide]))
    if report.network is not None:
        say(f"network  {_network_line(report.network)}")
    for problem in report.problems:
        where = problem.node or "all nodes"
        console.print(Text(f"{where}: {problem.what}", "red"))
        say(f"  {problem.remedy}")
    if not report.problems:
        say(f"all is well on {len(report.nodes)} nodes" if len(report.nodes) > 1 else "all is well")


def _table(report: Report, nodes: Sequence[NodeReport]) -> "Table":
    """A column for each of these nodes."""
    from rich.table import Column, Table
    from rich.text import Text

    wrong = {(problem.node, problem.figure) for problem in report.problems}
    columns = [dict(_figures(node, report.network)) for node in nodes]
    heads = [
        Column(Text(node.name, "red" if (node.name, "answers") in wrong else ""), overflow="fold")
        for node in nodes
    ]
    table = Table("", *heads)
    for figure in dict.fromkeys(figure for column in columns for figure in column):
        cells = []
        for node, column in zip(nodes, columns, strict=True):
            is_wrong = (node.name, figure) in wrong or ("", figure) in wrong
            cells.append(Text(column.get(figure, "-"), "red" if is_wrong else ""))
        table.add_row(figure, *cells)
    return table


def _figures(node: NodeReport, network: Network | None) -> Iterator[tuple[str, str]]:
    """Name and text of what is known of a node."""
    workers = "" if node.has_workers else ", no workers"
    yield "answers", node.fault or f"yes{workers}"
    if (system := node.system) is not None:
        names = sorted({f"{gpu.name}, {gpu.memory_mib / 1024:,.0f} GiB" for gpu in system.gpus})
        yield "CPU cores", f"{node.cpus:g}"
        yield "GPUs", f"{len(system.gpus)} ({'; '.join(names)})" if names else "none"
        yield "interface", _interface(node)
    rates = [
        pair.bytes_s
        for pair in (network.pairs if network is not None else ())
        if node.name in (pair.one, pair.other)
    ]
    if network is not None and node.has_workers:
        yield "network", f"slowest pair {min(rates) / 1e6:,.0f} MB/s" if rates else "not measured"
    if system is not None:
        yield "/dev/shm", f"{system.shm_bytes / GIB:,.2f} GiB free"
    if node.clock_skew_s is not None:
        yield "clock", f"{node.clock_skew_s:+.3f} s"
    yield from _folders(node)
    for figure, answer in node.answers.items():
        if figure != STORE or answer.fault:
            yield figure, _answer(figure, answer.facts) if not answer.fault else "fails"
    if system is not None:
        yield from system.versions.items()
        yield "driver", system.driver or "none"


def _interface(node: NodeReport) -> str:
    found = node.system.interface if node.system is not None else None
    if found is None:
        return f"{node.address}, on no interface"
    speed = f", {found.speed_mbit_s:,} Mbit/s" if found.speed_mbit_s else ""
    return f"{found.name} {node.address}{speed}, MTU {found.mtu}"


def _folders(node: NodeReport) -> Iterator[tuple[str, str]]:
    for folder in node.folders:
        if folder.fault:
            yield folder.key, folder.fault
        else:
            free, rate = (folder.free_bytes or 0) / GIB, (folder.write_bytes_s or 0) / 1e6
            yield folder.key, f"{free:,.1f} GiB free, writes {rate:,.0f} MB/s"


def _answer(figure: str, facts: dict[str, object]) -> str:
    if figure == DECODE:
        return f"{facts['images_per_s']:,.0f} images/s, {facts['each']:,.0f} a {facts['per']}"
    told = f"{facts['images']:,} images of {facts['identities']:,}"
    rate = facts.get("read_bytes_s")
    return f"{told}, read at {rate / 1e6:,.0f} MB/s" if isinstance(rate, float) else told


def _network_line(network: Network) -> str:
    told = f"{network.backend}, messages of {network.num_bytes >> 20} MiB"
    if network.all_reduce_bytes_s is not None:
        told += f": all-reduce {network.all_reduce_bytes_s / 1e6:,.0f} MB/s"
    if rates := [pair.bytes_s for pair in network.pairs]:
        told += f", pairs {min(rates) / 1e6:,.0f} to {max(rates) / 1e6:,.0f} MB/s"
    return told
