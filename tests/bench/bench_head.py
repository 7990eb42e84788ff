"""The head's step beside a plain version of the published algorithm (Partial FC, arXiv 2203.15565),
in one table with ratios.

    python tests/bench/bench_head.py [--only NAME ...] [--rounds 5] [--json]

The peer: float32 logits of the whole batch, sampled classes gathered by index, autograd, momentum
and decay of all rows in every step. Each contender has a process and two threads; they step in
turn, and a ratio is the median of the rounds' ratios. Memory is the peak of the resident set of a
process of its own, by `VmHWM`, above what stood before the head was built ("all") or above what
stays after a step ("beyond"). `growth` needs 18 GB, `capacity` 20 GB, either some minutes.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from manyfaces.cluster.memory import KEEP_MEMORY
from manyfaces.configs import schema
from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.margins.arcface import ArcFace
from manyfaces.models.head import devices, partial_fc, sampling
from manyfaces.models.head.collectives import Ranks
from manyfaces.models.head.exchange import Exchange
from manyfaces.models.head.partial_fc import PartialFC
from manyfaces.models.head.products import times_transposed

D = 512
CPU = torch.device("cpu")
ROWWISE = schema.Rows(optimizer="rowwise", dtype="float16")
KINDS: dict[str, dict[str, Any]] = {
    "recompute": {},
    "store16": {"logits": "store16"},
    "rowwise": {"rows": ROWWISE},
}
PLAIN = {name: value for name, value in os.environ.items() if name not in KEEP_MEMORY}
Step = Callable[[], float]


class Row(NamedTuple):
    workload: str
    what: str
    value: float
    unit: str
    target: str
    detail: str


class Peer:
    """ArcFace over all classes or a random sample of them, as published."""

    def __init__(self, num_classes: int, rate: float) -> None:
        self.weight = torch.nn.Parameter(torch.normal(0, 0.01, (num_classes, D)))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.1, momentum=0.9, weight_decay=5e-4)
        self.rate = rate

    def step(self, embeddings_BD: Tensor, labels_B: Tensor) -> tuple[float, Tensor]:
        embeddings_BD = embeddings_BD.detach().requires_grad_()
        weight: Tensor = self.weight
        if self.rate < 1:
            scores = torch.rand(len(weight))
            positives = torch.unique(labels_B)
            scores[positives] = 2
            index = (
                torch.topk(scores, max(int(self.rate * len(weight)), len(positives)))
                .indices.sort()
                .values
            )
            labels_B, weight = torch.searchsorted(index, labels_B), weight[index]
        logits_BC = (F.normalize(embeddings_BD) @ F.normalize(weight).T).clamp(-1, 1)
        target_B1 = logits_BC.gather(1, labels_B[:, None])
        logits_BC = logits_BC.scatter(
            1, labels_B[:, None], torch.cos(torch.acos(target_B1 * (1 - 1e-7)) + 0.5)
        )
        loss = F.cross_entropy(logits_BC * 64, labels_B)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        assert embeddings_BD.grad is not None
        return loss.item(), embeddings_BD.grad


class LinearCrossEntropy:
    """torch's chunked `linear_cross_entropy` with normalised inputs, without a margin, which it
    cannot have; the optimiser is fused."""

    def __init__(self, num_classes: int, batch_chunk: int) -> None:
        self.weight = torch.nn.Parameter(torch.normal(0, 0.01, (num_classes, D)))
        self.optimizer = torch.optim.SGD(
            [self.weight], lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True
        )
        self.options = torch.nn.LinearCrossEntropyOptions(
            batch_chunk_size=batch_chunk, chunking_method=None
        )

    def step(self, embeddings_BD: Tensor, labels_B: Tensor) -> float:
        embeddings_BD = embeddings_BD.detach().requires_grad_()
        loss = F.linear_cross_entropy(
            F.normalize(embeddings_BD) * 64,
            F.normalize(self.weight),
            labels_B,
            options=self.options,
        )
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def batch(num_classes: int, B: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, D, generator=generator), torch.randint(
        0, num_classes, (B,), generator=generator
    )


def ours(num_classes: int, B: int, **settings: Any) -> Step:
    config = schema.Head(margin=ArcFace(), **settings)
    head = PartialFC(config, num_classes, D, seed=0, weight_decay=5e-4, device=CPU)
    embeddings_BD, labels_B = batch(num_classes, B)
    position = 0

    def step() -> float:
        nonlocal position
        position += B
        return head.step(
            embeddings_BD, labels_B, lr=0.1, position=position, batch_size=B
        ).loss.item()

    return step


class OneOf64(Ranks):
    """A rank whose peers are made up: what they would add is left out."""

    def __init__(self, group: object) -> None:
        self.rank, self.world_size = 3, 64

    def sum_(self, values: Tensor) -> Tensor:
        return values


def share(num_classes: int, B: int, rate: float, columns: str) -> Step:
    """A rank's share of the head on 64 ranks, for the global batch. Sampled classes as on a GPU:
    with a column for each sample of the batch (`each`), or for as many of its classes as are
    expected here (`expected`)."""
    patch.object(devices, "host_sync_is_free", lambda device: False).start()
    if columns == "each":
        patch.object(sampling, "undrawn_columns", lambda rate, batch_size, *of: batch_size).start()
    with patch.object(partial_fc, "Ranks", OneOf64):
        head = PartialFC(
            schema.Head(sample_rate=rate), num_classes, D, seed=0, weight_decay=5e-4, device=CPU
        )
    exchange = Exchange(Ranks(None), B, torch.float32)
    embeddings_BD, labels_B = batch(num_classes, B)
    whole = exchange.gather(embeddings_BD, exchange.tell(labels_B, last=False))
    position = 0

    def step() -> float:
        nonlocal position
        position += B
        head.prefetch(position, B, whole.labels_B)
        head.step_shared(exchange, whole, lr=0.1, position=position)
        return float(sum(map(len, head.choice.columns(whole.labels_B, position).chunks)))

    return step


def peers(num_classes: int, B: int, rate: float) -> Step:
    peer, (embeddings_BD, labels_B) = Peer(num_classes, rate), batch(num_classes, B)
    return lambda: peer.step(embeddings_BD, labels_B)[0]


def matrix_rate(
    num_classes: int,
    B: int,
    chunk: int,
    dtype: torch.dtype,
    product: Callable[[Tensor, Tensor], Tensor],
) -> Step:
    """The three products of a full softmax, 6BCD operations, and nothing else; `product(a, b)` is a
    @ b.T."""
    unit_BD, rows_CD, scores_Bn = (
        torch.randn(B, D).to(dtype),
        torch.randn(num_classes, D).to(dtype),
        torch.randn(B, chunk).to(dtype),
    )

    def step() -> float:
        for first in range(0, num_classes, chunk):
            rows_nD = rows_CD[first : first + chunk]
            product(unit_BD, rows_nD)
            part_Bn = scores_Bn[:, : len(rows_nD)]
            product(part_Bn, rows_nD.T)
            product(part_Bn.T, unit_BD.T)
        return 0.0

    return step


class Remote:
    """A contender in a process of its own, which steps when told to: as CPU workers start, or with
    the system's own allocator settings."""

    def __init__(self, kind: str, *words: object, keep_memory: bool = True) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--part", "serve", kind, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**PLAIN, **KEEP_MEMORY} if keep_memory else PLAIN,
        )

    def seconds(self) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def part_serve(kind: str, num_classes: str, B: str, *more: str) -> dict[str, float]:
    C = int(num_classes)
    step = build(kind, C, int(B), *more)
    for _ in sys.stdin:
        began = time.perf_counter()
        step()
        print(time.perf_counter() - began, flush=True)  # noqa: T201
    return {}


def build(kind: str, C: int, B: int, *more: str) -> Step:
    if kind in KINDS:
        return ours(C, B, sample_rate=float(more[0]), **KINDS[kind])
    if kind == "share":
        return share(C, B, float(more[0]), more[1])
    if kind == "peer":
        return peers(C, B, float(more[0]))
    if kind in ("products", "torch.mm"):
        product = times_transposed if kind == "products" else lambda a, b: torch.mm(a, b.T)
        return matrix_rate(C, B, int(more[0]), getattr(torch, more[1]), product)
    entropy, (embeddings_BD, labels_B) = LinearCrossEntropy(C, int(more[0])), batch(C, B)
    return lambda: entropy.step(embeddings_BD, labels_B)


def interleaved(contenders: dict[str, Remote], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender's steps, taken in turn after two steps to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 2):
        for name, contender in contenders.items():
            took = contender.seconds()
            if turn >= 2:
                seconds[name].append(took)
    for contender in contenders.values():
        contender.process.communicate()
    return seconds


def ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def ms(seconds: list[float]) -> str:
    return f"{1e3 * statistics.median(seconds):,.0f} ms"


def memory(part: str, *words: object) -> dict[str, float]:
    """Facts of `--part` in a process of its own."""
    command = [sys.executable, __file__, "--part", part, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=PLAIN)
    facts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return facts


def resident(name: str) -> float:
    """MB (10^6) of this process: VmRSS now, or VmHWM, the most since the last `reset`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def trimmed() -> float:
    """MB that stay when the allocator gives back what it can."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return resident("VmRSS")


def reset() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def part_memory(kind: str, num_classes: str, B: str, rate: str) -> dict[str, float]:
    ours(2000, int(B))()  # threads and the libraries' own buffers
    peers(2000, int(B), 1.0)()
    before, C, r = trimmed(), int(num_classes), float(rate)
    step = peers(C, int(B), r) if kind == "peer" else ours(C, int(B), sample_rate=r, **KINDS[kind])
    reset()
    step()  # all state is touched now
    most, stays = resident("VmHWM"), trimmed()
    reset()
    step()
    return {"all": max(most, resident("VmHWM")) - before, "beyond": resident("VmHWM") - stays}


def full(arguments: argparse.Namespace) -> list[Row]:
    C, B = 200_000, 512
    contenders = {
        "peer": Remote("peer", C, B, 1.0, keep_memory=False),
        "peer, allocator kept": Remote("peer", C, B, 1.0),
        **{kind: Remote(kind, C, B, 1.0) for kind in ("recompute", "store16")},
        **{f"products of {n}": Remote("products", C, B, n, "float32") for n in (512, 1024)},
        "torch.mm": Remote("torch.mm", C, B, 1024, "float32"),
    }
    seconds = interleaved(contenders, arguments.rounds)
    products = min(
        (seconds[name] for name in seconds if name.startswith("products")), key=statistics.median
    )
    contenders = {
        "store16": Remote("store16", C, B, 1.0),
        "bfloat16": Remote("products", C, B, 4096, "bfloat16"),
        **{f"linear of {n}": Remote("linear_cross_entropy", C, B, n) for n in (128, 512)},
    }
    others = interleaved(contenders, arguments.rounds)  # all at once would not fit
    linear = min(
        (others[name] for name in others if name.startswith("linear")), key=statistics.median
    )
    beyond = {
        kind: memory("memory", kind, C, B, 1.0)["beyond"]
        for kind in ("peer", "recompute", "store16")
    }
    name, rows = f"full, C = {C:,}, B = {B}", []

    def rate(seconds: list[float]) -> str:
        return f"{6 * B * C * D / statistics.median(seconds) / 1e9:,.0f} GFLOP/s"

    for kind, faster, share, less in (("recompute", 1.3, 65, 50), ("store16", 1.6, 80, 8)):
        for peer, target in (("peer", f">= {faster}"), ("peer, allocator kept", "reported")):
            detail = f"{ms(seconds[kind])}, {ms(seconds[peer])}"
            rows.append(
                Row(
                    name,
                    f"{kind}: faster than the {peer}",
                    ratio(seconds[peer], seconds[kind]),
                    "x",
                    target,
                    detail,
                )
            )
        detail = f"{rate(seconds[kind])}, {rate(products)}"
        rows.append(
            Row(
                name,
                f"{kind}: of the products' rate",
                100 * ratio(products, seconds[kind]),
                "%",
                f">= {share}",
                detail,
            )
        )
        detail = f"{rate(seconds[kind])}, {rate(seconds['torch.mm'])}"
        rows.append(
            Row(
                name,
                f"{kind}: of torch.mm's rate",
                100 * ratio(seconds["torch.mm"], seconds[kind]),
                "%",
                "reported",
                detail,
            )
        )
        detail = f"{beyond[kind]:,.0f} MB, {beyond['peer']:,.0f} MB"
        rows.append(
            Row(
                name,
                f"{kind}: less memory beyond",
                beyond["peer"] / beyond[kind],
                "x",
                f">= {less}",
                detail,
            )
        )
    rows.append(
        Row(
            name,
            "store16: faster than linear_cross_entropy",
            ratio(linear, others["store16"]),
            "x",
            ">= 1",
            ms(linear),
        )
    )
    rows.append(
        Row(
            name,
            "products in bfloat16",
            statistics.median(products) / statistics.median(others["bfloat16"]),
            "x",
            "reported",
            "of those in float32",
        )
    )
    return rows


def sampled(arguments: argparse.Namespace) -> list[Row]:
    C, B, rate = 1_000_000, 128, 0.1
    name = f"sampled {rate}, C = {C:,}, B = {B}"
    rows = pairs(
        name,
        C,
        B,
        rate,
        arguments.rounds,
        {"recompute": ">= 5", "store16": ">= 5", "rowwise": "reported"},
    )
    used = {
        kind: memory("memory", kind, C, B, rate)["all"] for kind in ("peer", "recompute", "rowwise")
    }
    for kind, target in (("recompute", "<= 0.5"), ("rowwise", "<= 0.2")):
        rows.append(
            Row(
                name,
                f"{kind}: memory",
                used[kind] / used["peer"],
                "x",
                target,
                f"{used[kind]:,.0f} MB, {used['peer']:,.0f} MB",
            )
        )
    return rows


def few(arguments: argparse.Namespace) -> list[Row]:
    name = "20,000 rows of C = 1,000,000, B = 128"
    return pairs(
        name,
        1_000_000,
        128,
        0.02,
        arguments.rounds,
        {"recompute": ">= 15", "store16": ">= 15", "rowwise": "reported"},
    )


def pairs(
    name: str, C: int, B: int, rate: float, rounds: int, targets: dict[str, str]
) -> list[Row]:
    """The peer beside one of ours at a time: more would not fit."""
    rows = []
    for kind, target in targets.items():
        seconds = interleaved(
            {
                "peer": Remote("peer", C, B, rate, keep_memory=False),
                "ours": Remote(kind, C, B, rate),
            },
            rounds,
        )
        detail = f"{ms(seconds['ours'])}, {ms(seconds['peer'])}"
        rows.append(
            Row(
                name,
                f"{kind}: faster than the peer",
                ratio(seconds["peer"], seconds["ours"]),
                "x",
                target,
                detail,
            )
        )
    return rows


def ranks(arguments: argparse.Namespace) -> list[Row]:
    """The recipe of 42 million images, an eighth of it."""
    C, B, rate = 2_059_906 // 8, 24_576 // 8, 0.3
    kinds = {"all": (1.0, "each"), "each": (rate, "each"), "expected": (rate, "expected")}
    contenders = {name: Remote("share", C, B, *words) for name, words in kinds.items()}
    seconds = interleaved(contenders, arguments.rounds)
    columns = {name: memory("columns", C, B, *words)["columns"] for name, words in kinds.items()}
    name = f"a rank of 64, C = {C:,}, B = {B:,}"
    rows = [
        Row(name, f"columns, rate {kinds[each][0]}, {each}", columns[each], "", "", "")
        for each in kinds
    ]
    for over, target in (("each", ">= 2"), ("all", ">= 2")):
        detail = f"{ms(seconds['expected'])}, {ms(seconds[over])}"
        faster = ratio(seconds[over], seconds["expected"])
        rows.append(Row(name, f"expected: faster than {over}", faster, "x", target, detail))
    return rows


def part_columns(num_classes: str, B: str, rate: str, columns: str) -> dict[str, float]:
    return {"columns": share(int(num_classes), int(B), float(rate), columns)()}


def growth(arguments: argparse.Namespace) -> list[Row]:
    rows = []
    for kind, large in (("recompute", 4_000_000), ("rowwise", 16_000_000)):
        contenders = {f"{C:,}": Remote(kind, C, 128, 20_000 / C) for C in (250_000, large)}
        small, big = interleaved(contenders, 5 * arguments.rounds).values()
        name = f"{kind}: time at C = {large:,} over 250,000"
        rows.append(
            Row(
                "20,000 rows of any C, B = 128",
                name,
                ratio(big, small),
                "x",
                "<= 1.1",
                f"{ms(big)}, {ms(small)}",
            )
        )
    return rows


def capacity(arguments: argparse.Namespace) -> list[Row]:
    mine = memory("capacity", "ours", 18_000_000)
    theirs = memory("capacity", "peer", 1_000_000)
    # The peer's grows in proportion, and what is not classes is the same.
    each = (theirs["peak"] - theirs["before"]) / 1_000_000
    most = (20_000 - theirs["before"]) / each
    ours_each = (mine["peak"] - mine["before"]) / 18_000_000
    detail = (
        f"{mine['peak']:,.0f} MB at 18,000,000, loss {mine['loss']:.1f}; {theirs['peak']:,.0f} MB "
        "at 1,000,000"
    )
    times = (20_000 - mine["before"]) / ours_each / most
    return [
        Row(
            "MobileFaceNet, B = 8, rate 0.01, 20 GB",
            "identities over the peer's",
            times,
            "x",
            ">= 7.5",
            detail,
        )
    ]


def part_capacity(kind: str, num_classes: str) -> dict[str, float]:
    """Three steps of the backbone and the head."""
    C, B, rate = int(num_classes), 8, 0.01
    model = MobileFaceNet().build(image_hw=(112, 112)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    images, labels_B = torch.randint(0, 256, (B, 112, 112, 3), dtype=torch.uint8), batch(C, B)[1]
    images_NCHW = (images.permute(0, 3, 1, 2).float() - 127.5) / 127.5
    head = peer = None
    facts = {}
    for turn in range(4):
        embeddings_BD = model(images_NCHW).embeddings["main"]
        if turn == 0:  # all but the head
            embeddings_BD.square().mean().backward()
            facts["before"] = resident("VmHWM")
            if kind == "peer":
                peer = Peer(C, rate)
            else:
                head = PartialFC(
                    schema.Head(sample_rate=rate, rows=ROWWISE),
                    C,
                    D,
                    seed=0,
                    weight_decay=5e-4,
                    device=CPU,
                )
        elif peer is not None:
            facts["loss"], d_embeddings_BD = peer.step(embeddings_BD, labels_B)
            embeddings_BD.backward(d_embeddings_BD)
        else:
            assert head is not None
            step = head.step(embeddings_BD, labels_B, lr=0.1, position=turn * B, batch_size=B)
            facts["loss"] = step.loss.item()
            embeddings_BD.backward(step.d_embeddings_ND)
        optimizer.step()
        optimizer.zero_grad()
    return {**facts, "peak": resident("VmHWM")}


def wire(arguments: argparse.Namespace) -> list[Row]:
    """Bytes that four gloo ranks really send, by the loopback device's own count: nothing else may
    use it meanwhile."""
    sent = {
        kind: memory("wire", kind)["bytes"] / 1000
        for kind in ("idle", "peer", "float32", "bfloat16")
    }
    peer, rows = sent["peer"] - sent["idle"], []
    for kind, target in (("float32", "reported"), ("bfloat16", "<= 0.5")):
        mine = sent[kind] - sent["idle"]
        detail = f"{mine:,.0f} kB, {peer:,.0f} kB a step"
        rows.append(
            Row(
                "4 gloo ranks, B = 512",
                f"{kind}: bytes over the peer's",
                mine / peer,
                "x",
                target,
                detail,
            )
        )
    return rows


def part_wire(kind: str) -> dict[str, float]:
    store = dist.TCPStore("127.0.0.1", 0, 4, is_master=True, wait_for_workers=False)
    command = [sys.executable, __file__, "--part", "wire_rank", kind, str(store.port)]
    ranks = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in range(4)
    ]
    outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    return json.loads(outputs[0].splitlines()[-1])  # type: ignore[no-any-return]


def loopback() -> int:
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))


def part_wire_rank(kind: str, port: str, rank: str) -> dict[str, float]:
    store = dist.TCPStore("127.0.0.1", int(port), 4, is_master=False)
    dist.init_process_group("gloo", store=store, rank=int(rank), world_size=4)
    C, B, b = 4096, 512, 128
    embeddings_BD, labels_B = batch(C, b)
    head = PartialFC(
        schema.Head(wire_dtype="bfloat16" if kind == "bfloat16" else "float32"),
        C,
        D,
        seed=0,
        weight_decay=0,
        device=CPU,
        group=dist.group.WORLD,
    )

    def published() -> None:
        """What its step sends: embeddings and labels, three reductions of B numbers, one reduction
        of gradients to each rank."""
        dist.all_gather([torch.empty(b, D) for _ in range(4)], embeddings_BD)
        dist.all_gather([torch.empty(b, dtype=torch.int64) for _ in range(4)], labels_B)
        for op in (dist.ReduceOp.MAX, dist.ReduceOp.SUM, dist.ReduceOp.SUM):
            dist.all_reduce(torch.ones(B), op)
        for to in range(4):
            dist.reduce(torch.ones(b, D), to)

    def step() -> None:
        if kind == "peer":
            published()
        elif kind != "idle":
            head.step(embeddings_BD, labels_B, lr=0.1, position=0, batch_size=B)

    step()
    dist.barrier()
    began, count = loopback(), 20
    for _ in range(count):
        step()
    dist.barrier()
    bytes_ = (loopback() - began) / count
    dist.barrier()
    dist.destroy_process_group()
    return {"bytes": bytes_}


WORKLOADS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "full": full,
    "sampled": sampled,
    "few": few,
    "ranks": ranks,
    "growth": growth,
    "capacity": capacity,
    "wire": wire,
}
PARTS: dict[str, Callable[..., dict[str, float]]] = {
    "serve": part_serve,
    "memory": part_memory,
    "columns": part_columns,
    "capacity": part_capacity,
    "wire": part_wire,
    "wire_rank": part_wire_rank,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    if arguments.part:
        print(json.dumps(PARTS[arguments.part[0]](*arguments.part[1:])))  # noqa: T201
        return
    rows = [row for name in arguments.only for row in WORKLOADS[name](arguments)]
    if arguments.json:
        print(json.dumps([row._asdict() for row in rows], indent=1))  # noqa: T201
        return
    table = Table("workload", "what", "measured", "target", "ours, theirs")
    for row in rows:
        table.add_row(row.workload, row.what, f"{row.value:.3g} {row.unit}", row.target, row.detail)
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
