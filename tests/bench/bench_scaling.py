"""What everything around the step costs, how two ranks scale, what travels between them, and what
the plan expects of many GPUs.

    python tests/bench/bench_scaling.py configs/demo.yaml [path.to.key=value ...] [--rounds 3] [--steps 120]

Each rate is the median of interleaved rounds, of two workers with the recipe's settings and without
evaluation; a run's is taken between its first and its last rows of metrics, checkpoints and all:

- `bare loop`: the same step under torchrun, without record, MLflow, progress, checkpoints and Ray;
- `torchrun` and `Ray`: the command that a person types;
- `two alone`: two bare loops at the same time that know nothing of each other.

Besides the rates it prints which processes beside the workers used the cores meanwhile, what the
ranks send in a step and how often, beside the plan's figure, and by the plan's arithmetic how well
64 to 1,024 GPUs would do (`--no-runs` prints only that).
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import log2
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from manyfaces.cluster.memory import KEEP_MEMORY
from manyfaces.configs import machines, plan
from manyfaces.configs.load import load
from manyfaces.configs.plan_time import step_time
from manyfaces.configs.schema import Config

TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
TORCHRUN += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
WORKERS = 2
FIRST = 20
"""Steps that are left out at the beginning."""
BARE, RUN_TORCHRUN, RUN_RAY, ALONE = "bare loop", "torchrun", "Ray", "two alone"

LATENCY_S, OVERLAPPED = 20e-6, 0.8
"""Assumed: the time of one hop of a collective, and the share of the gradients' exchange that runs
behind the backward pass."""
CARD: machines.Card = "h100"
COLLECTIVES = 5
"""Of the head in a step, at most."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--no-runs", action="store_true", help="only the model of many GPUs")
    parser.add_argument("--bare", choices=["rate", "wire"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    is_rate = not arguments.no_runs and arguments.bare != "wire"
    if is_rate and arguments.steps < 2 * FIRST:
        parser.error(f"--steps must be at least {2 * FIRST}: the first {FIRST} are left out")
    if arguments.bare is not None:
        bare(load(arguments.config, arguments.overrides), arguments.steps, arguments.bare)
        return
    console = Console(width=100)
    if not arguments.no_runs:
        recipe = [arguments.config, *arguments.overrides]
        show_rates(console, recipe, arguments.steps, arguments.rounds)
        show_wire(console, recipe)
    show_model(console, load(arguments.config, arguments.overrides))


def show_rates(console: Console, recipe: Sequence[str], steps: int, rounds: int) -> None:
    """Measure all variants in turn, and print their rates and who else used the cores."""
    measure: dict[str, Callable[[], tuple[float, Counter[str]]]] = {
        BARE: lambda: (bare_rate(recipe, steps), Counter()),
        RUN_TORCHRUN: lambda: run_rate([*TORCHRUN, "-m"], recipe, steps),
        RUN_RAY: lambda: run_rate(["-m"], [*recipe, f"cluster.workers={WORKERS}"], steps),
        ALONE: lambda: (alone_rate(recipe, steps), Counter()),
    }
    rates: dict[str, list[float]] = {name: [] for name in measure}
    used: dict[str, Counter[str]] = {name: Counter() for name in measure}
    for turn in range(rounds):
        names = list(measure) if turn % 2 == 0 else list(reversed(measure))
        for name in names:
            rate, seconds = measure[name]()
            rates[name].append(rate)
            used[name] += seconds
    beside = {RUN_TORCHRUN: BARE, RUN_RAY: BARE, BARE: ALONE}
    table = Table("two workers", "images/s", "lowest and highest", "beside")
    for name, found in rates.items():
        share = ""
        if name in beside:
            pairs = zip(found, rates[beside[name]], strict=True)
            share = f"{statistics.median(a / b for a, b in pairs):.1%} of {beside[name]}"
        ends = f"{min(found):,.0f} to {max(found):,.0f}"
        table.add_row(name, f"{statistics.median(found):,.0f}", ends, share)
    console.print(table)
    table = Table("beside the workers", *(name for name in used if used[name]))
    labels = sorted({label for seconds in used.values() for label in seconds})
    for label in labels:
        table.add_row(label, *(f"{each[label] / rounds:.2f}" for each in used.values() if each))
    console.print("seconds of a core in a minute of training, means of the rounds:")
    console.print(table)


def bare_rate(recipe: Sequence[str], steps: int) -> float:
    """Images a second of two ranks of the bare loop."""
    return float(_bare([*TORCHRUN, __file__], recipe, steps, "rate"))


def alone_rate(recipe: Sequence[str], steps: int) -> float:
    """Images a second of two bare loops at a time, of half the batch each, together."""
    tree = load(recipe[0], list(recipe[1:]))
    half = [*recipe, f"train.batch_size={tree.train.batch_size // WORKERS}"]
    with ThreadPoolExecutor(WORKERS) as pool:
        both = [pool.submit(_bare, [__file__], half, steps, "rate") for _ in range(WORKERS)]
        return sum(float(each.result()) for each in both)


def _bare(command: Sequence[str], recipe: Sequence[str], steps: int, what: str) -> str:
    """The last line that a bare loop prints."""
    options = ["--bare", what, "--steps", str(steps)]
    words = [sys.executable, *command, *recipe, *options]
    environment = {**os.environ, **KEEP_MEMORY}
    ended = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    if ended.returncode:
        raise SystemExit(f"{' '.join(words)}:\n{ended.stderr[-2000:]}")
    return ended.stdout.strip().splitlines()[-1]


def run_rate(
    command: Sequence[str], recipe: Sequence[str], steps: int
) -> tuple[float, Counter[str]]:
    """Images a second of a run as a person starts it, and the seconds of a core that processes
    beside its workers used in a minute of it, by what they are."""
    config = load(recipe[0], list(recipe[1:]))
    batch, images = config.train.batch_size, _num_images(config)
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"run.dir={folder}",
            "run.name=bench",
            f"train.epochs={steps * batch / images}",
            "evaluation.pairs=[]",
        ]
        words = [sys.executable, *command, "manyfaces.train", "train", *recipe, *settings]
        metrics = Path(folder) / "bench" / "metrics.jsonl"
        environment = {**os.environ, **KEEP_MEMORY}
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        began: dict[int, tuple[str | None, float]] = {}
        ended = began
        try:
            while process.poll() is None:
                made = [row["step"] for row in _rows(metrics)]
                if made and max(made) >= FIRST and not began:
                    began = _seconds_used(process.pid)
                elif made and max(made) < steps:
                    ended = _seconds_used(process.pid)
                time.sleep(1)
        finally:
            _kill(process)
        if process.returncode:
            raise SystemExit(f"{' '.join(words)}: exit code {process.returncode}")
        rows = [row for row in _rows(metrics) if row["step"] >= FIRST]
    first, last = rows[0], rows[-1]
    seconds = last["time"] - first["time"]
    used: Counter[str] = Counter()
    for pid, (label, until) in ended.items():
        if label is not None and pid in began:
            used[label] += 60 * (until - began[pid][1]) / seconds
    return (last["step"] - first["step"]) * batch / seconds, used


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all below it, where it has not ended by itself."""
    if process.poll() is None:
        tree = [psutil.Process(process.pid)]
        tree += tree[0].children(recursive=True)
        for each in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [row for row in rows if "images_per_s" in row]


def _seconds_used(pid: int) -> dict[int, tuple[str | None, float]]:
    """Of each process below this one and of itself: what it is, None for a worker, and the seconds
    of a core that it has used so far."""
    used = {}
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return {}
    for process in tree:
        try:
            times, words = process.cpu_times(), process.cmdline()
        except psutil.NoSuchProcess:
            continue
        used[process.pid] = (_label(process.pid == pid, words), times.user + times.system)
    return used


def _label(is_command: bool, words: Sequence[str]) -> str | None:
    """What a process is; None for a worker."""
    line = " ".join(words)
    for part, label in (
        ("gcs_server", "Ray: gcs_server"),
        ("raylet/raylet", "Ray: raylet"),
        ("dashboard/agent", "Ray: dashboard agent"),
        ("runtime_env/agent", "Ray: runtime_env agent"),
        ("log_monitor", "Ray: log monitor"),
        ("monitor.py", "Ray: autoscaler's monitor"),
        ("dashboard.py", "Ray: dashboard"),
        ("ray::TrainController", "Ray: controller of Ray Train"),
        ("ray::IDLE", "Ray: idle workers"),
    ):
        if part in line:
            return label
    if is_command:
        return "the command: progress, MLflow's mirror, lease"
    return None if "RayTrainWorker" in line or "manyfaces.train" in line else "other"


def bare(config: Config, steps: int, what: str) -> None:
    """The step alone, in this process, which may be one of several; rank 0 prints images a second
    of all ranks, or what is sent."""
    import torch
    import torch.distributed as dist

    sent = Sent() if what == "wire" else None
    from manyfaces.cluster.world import World
    from manyfaces.data.dataset.dataset import open_data
    from manyfaces.data.feed.loader import Loader
    from manyfaces.data.feed.quarantine import Quarantine
    from manyfaces.data.feed.view import main_view
    from manyfaces.train.build import build
    from manyfaces.train.evaluation.decoding import worker_decode_threads
    from manyfaces.train.objectives.objective import Moment
    from manyfaces.train.record import NoRecord
    from manyfaces.train.step import train_step

    if "RANK" in os.environ:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    else:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    torch.set_num_threads(config.cluster.threads_per_worker)
    world, batch_size, dataset = World.current(), config.train.batch_size, open_data(config.data)
    engine, _, objective = build(config, world, dataset, None, dist.group.WORLD, NoRecord())
    began = 0.0
    with (
        tempfile.TemporaryDirectory() as folder,
        Loader(
            dataset,
            config.data,
            views=objective.views(main_view(config.data)),
            seed=0,
            batch_size=batch_size,
            rank=world.rank,
            world_size=world.size,
            position=0,
            end=steps * batch_size,
            device=world.device,
            quarantine=Quarantine(Path(folder) / "quarantine.jsonl", dataset, 0.0),
            decode_threads=worker_decode_threads(config, WORKERS),
        ) as loader,
    ):
        for step, batch in enumerate(loader, start=1):
            moment = Moment(batch.position, batch_size, lr=1e-3)
            if sent is not None:
                sent.is_on = step == steps
            train_step(
                engine,
                objective,
                batch,
                moment,
                seed=0,
                rank=world.rank,
                num_micro_batches=config.train.num_micro_batches(world.size),
            )
            if step == FIRST:
                dist.barrier()
                began = time.perf_counter()
    if sent is not None:
        sent.is_on = False
    dist.barrier()
    rate = (steps - FIRST) * batch_size / (time.perf_counter() - began)
    if world.rank == 0:
        print(json.dumps(rate if sent is None else sent.counts))  # noqa: T201
    dist.destroy_process_group()


_PASSES = {"all_reduce": 2, "broadcast": 1, "reduce": 1}
_PASSES |= dict.fromkeys(("all_gather_single", "all_gather_into_tensor", "all_to_all_single"), 1)
_PASSES |= dict.fromkeys(("reduce_scatter_single", "reduce_scatter_tensor"), 1)
"""How often a rank of W sends (W - 1) / W of the call's largest tensor, by the usual algorithms."""


def _bytes(given: Any) -> int:
    """Of a tensor; 0 for any other argument of a call."""
    return int(given.nbytes) if hasattr(given, "element_size") else 0


class Sent:
    """Counts calls and bytes sent by this rank in each of torch's collectives, while `is_on`. Made
    before anything takes the functions under names of its own."""

    def __init__(self) -> None:
        self.is_on, self.counts = False, dict[str, list[float]]()
        import torch.distributed as dist

        for name in _PASSES:
            if hasattr(dist, name):
                setattr(dist, name, self._counting(name, getattr(dist, name)))

    def _counting(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        import torch.distributed as dist

        def call(*given: Any, **named: Any) -> Any:
            if self.is_on:
                calls, size = self.counts.get(name, [0, 0.0])
                largest = max(_bytes(each) for each in (*given, *named.values()))
                share = 1 - 1 / dist.get_world_size()
                self.counts[name] = [calls + 1, size + _PASSES[name] * share * largest]
            return real(*given, **named)

        return call


def show_wire(console: Console, recipe: Sequence[str]) -> None:
    """Print what a rank sends in a step and how often, beside the plan."""
    sent = json.loads(_bare([*TORCHRUN, __file__], recipe, FIRST + 1, "wire"))
    config = load(recipe[0], list(recipe[1:]))
    planned = _plan(config, WORKERS)
    expected = planned.network.wire_bytes + planned.objective.wire_bytes
    table = Table("sent by a rank of two in a step", "calls", "bytes")
    for name, (calls, size) in sent.items():
        table.add_row(name, f"{calls}", f"{size:,.0f}")
    calls, size = (sum(column) for column in zip(*sent.values(), strict=True))
    table.add_row("all", f"{calls}", f"{size:,.0f}")
    table.add_row("by the plan", "", f"{expected:,.0f}")
    console.print(table)


def show_model(console: Console, config: Config) -> None:
    """Print how well many GPUs would do by the plan's arithmetic, each with its share of images."""
    share = max(config.train.batch_size // plan.world_size(config), 1)
    card = machines.gpu(config.cluster.machine or CARD, config.train.precision, known=True)
    table = Table("GPUs", "compute", "exchange not hidden", "efficiency")
    for world in (64, 128, 256, 512, 1024):
        train = config.train.model_copy(update={"batch_size": share * world})
        found = _plan(config.model_copy(update={"train": train}), world)
        step = step_time(found, card)
        compute_s = step.backbone_s + step.head_s
        hidden_s = card.sending(found.network.wire_bytes, world) * OVERLAPPED
        exposed_s = step.sent_s - hidden_s + COLLECTIVES * LATENCY_S * log2(world)
        efficiency = compute_s / (compute_s + exposed_s)
        times = (f"{1e3 * seconds:.2f} ms" for seconds in (compute_s, exposed_s))
        table.add_row(f"{world:,}", *times, f"{efficiency:.1%}")
    console.print(
        f"by the plan, {share:,} images a GPU, nothing of it measured: {card.assumed}; "
        f"{card.network / 1e9:.3g} GB/s a GPU, {1e6 * LATENCY_S:.0f} us a hop, "
        f"{OVERLAPPED:.0%} of the gradients' exchange hidden",
        highlight=False,
    )
    console.print(table)


def _plan(config: Config, world: int) -> plan.Plan:
    images = config.data.expect_images or _num_images(config)
    return plan.plan(config, images, config.data.expect_identities or _identities(config), world)


def _num_images(config: Config) -> int:
    from manyfaces.data.dataset.size import dataset_size

    return dataset_size(config.data)[0]


def _identities(config: Config) -> int:
    from manyfaces.data.dataset.size import dataset_size

    return dataset_size(config.data)[1]


if __name__ == "__main__":
    main()
