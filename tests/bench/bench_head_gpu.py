"""The head's step on a GPU beside the published algorithm's, full and sampled, with flat and with
peaked logits.

    python tests/bench/bench_head_gpu.py [--rounds 10] [--tiny]

Flat: embeddings at random, as a run begins. Peaked: embeddings near their class centres, as it
ends. The peer is Partial FC as it is shipped (`Peer` of bench_head.py: float32 logits, autograd,
momentum and decay of all rows) and tuned: products in bfloat16, TF32 elsewhere, margin and
cross-entropy compiled, a fused optimiser. Parity guard: loss and embeddings' gradient of a
step of 128 samples are compared with float64 from the same rows among the same classes; the peers'
errors are told, and one of ours that is further off than `LIMIT` gets no time. Each contender is
alone on the device while it runs. Each row is printed as a line of JSON; `--tiny` tries the same on
any machine.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from bench_head import KINDS, D, Peer
from told_rows import Row, attempt, peak_gb, step_seconds
from torch import Tensor

from manyfaces.cluster.device import worker_device
from manyfaces.configs import schema
from manyfaces.configs.margins.arcface import ArcFace
from manyfaces.models.head.partial_fc import PartialFC
from manyfaces.models.head.sampling import BLOCK, blocks

LIMIT = 2e-2
"""Relative error of loss and gradient: bfloat16 products, as in tests/gpu."""
COMPARED = 128
"""Samples that are compared with float64."""
LEAD = 3.0
"""Of peaked logits: the target's, with its margin, above the log-sum-exp of the others; a loss of
about 0.05."""
SEED, SAMPLE = 0, 7
"""Of our rows and draws; of the peers' draw that is compared."""
LOGITS = {False: "flat", True: "peaked"}
SHIPPED, TUNED = "Partial FC as shipped", "Partial FC tuned"


class Case(NamedTuple):
    """What is stepped: classes, batch and share of the classes."""

    classes: int
    batch: int
    rate: float

    def __str__(self) -> str:
        share = f", rate {self.rate:g}" if self.rate < 1 else ""
        return f"C = {self.classes:,}{share}, B = {self.batch:,}"


class TunedPeer(Peer):
    """The same, as fast as its parts can be made without another algorithm."""

    def __init__(self, num_classes: int, rate: float) -> None:
        super().__init__(num_classes, rate)
        settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "fused": True}
        self.optimizer = torch.optim.SGD([self.weight], **settings)  # type: ignore[arg-type]
        self.loss = torch.compile(margin_loss)

    def step(self, embeddings_BD: Tensor, labels_B: Tensor) -> tuple[float, Tensor]:
        embeddings_BD = embeddings_BD.detach().requires_grad_()
        weight: Tensor = self.weight
        if self.rate < 1:
            scores = torch.rand(len(weight))
            scores[labels_B] = 2  # no more labels than rows are drawn
            index = torch.topk(scores, int(self.rate * len(weight))).indices.sort().values
            labels_B, weight = torch.searchsorted(index, labels_B), weight[index]
        loss = self.loss(embeddings_BD, weight, labels_B)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        assert embeddings_BD.grad is not None
        return loss.item(), embeddings_BD.grad


def margin_loss(embeddings_BD: Tensor, weight_CD: Tensor, labels_B: Tensor) -> Tensor:
    """ArcFace's loss; the products in bfloat16."""
    unit_BD, unit_CD = F.normalize(embeddings_BD), F.normalize(weight_CD)
    logits_BC = (unit_BD.bfloat16() @ unit_CD.bfloat16().T).float().clamp(-1, 1)
    target_B1 = logits_BC.gather(1, labels_B[:, None])
    margin_B1 = torch.cos(torch.acos(target_B1 * (1 - 1e-7)) + 0.5)
    return F.cross_entropy(logits_BC.scatter(1, labels_B[:, None], margin_B1) * 64, labels_B)


class Stepped(NamedTuple):
    """A contender."""

    rows_CD: Tensor
    """Its class rows, which its steps change in place."""
    sample: Callable[[Tensor], Tensor | None]
    """The sorted ids of the classes that its next step scores for these labels, behind
    `torch.manual_seed(SAMPLE)`; None for all."""
    step: Callable[[Tensor, Tensor], tuple[float | Tensor, Tensor]]
    """From embeddings and labels to loss and d embeddings."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    device = worker_device()
    sizes = [(1_000_000, 1024, 1.0), (2_000_000, 1024, 0.1)]
    if arguments.tiny:
        sizes = [(2_000, 32, 1.0), (4_000, 32, 0.1)]
    for classes, batch, rate in sizes:
        show(Case(classes, batch, rate), arguments.rounds, device)


def show(case: Case, rounds: int, device: torch.device) -> None:
    """Tell the rows of one case: both peers, and ours beside them."""
    contenders: dict[str, Callable[[], Stepped]] = {
        SHIPPED: partial(peer, Peer, case, device),
        TUNED: partial(peer, TunedPeer, case, device),
        **{f"manyfaces {kind}": partial(ours, kind, case, device) for kind in KINDS},
    }
    if device.type == "cuda":
        without = partial(ours, "recompute", case, device, kernels=False)
        contenders["manyfaces recompute without kernels"] = without
    times: dict[tuple[str, bool], float] = {}
    for name, make in contenders.items():
        made: list[Stepped] = []  # once for both, for the rows of millions take seconds to make

        def measure(
            name: str, make: Callable[[], Stepped], made: list[Stepped], peaked: bool
        ) -> Row:
            if not made:
                made.append(make())
            return measured(name, made[0], case, peaked, times, rounds, device)

        for peaked in (False, True):
            what = f"{case}, {LOGITS[peaked]}: {name}"
            attempt(what, partial(measure, name, make, made, peaked))


def measured(
    name: str,
    stepped: Stepped,
    case: Case,
    peaked: bool,
    times: dict[tuple[str, bool], float],
    rounds: int,
    device: torch.device,
) -> Row:
    """The time of a contender's step, which is added to `times`, beside those of the peers."""
    what, is_peer = f"{case}, {LOGITS[peaked]}: {name}", name in (SHIPPED, TUNED)
    is_right, how = parity(stepped, case, peaked)
    if not is_right and not is_peer:
        return Row(what, None, detail=f"no time, for the result is wrong: {how}")
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    embeddings_BD, labels_B = batch_of(case, case.batch, peaked, stepped.rows_CD)
    seconds = step_seconds(lambda: stepped.step(embeddings_BD, labels_B), device, rounds=rounds)
    times[name, peaked] = seconds
    beside = [
        f"{times[each, peaked] / seconds:.2f} x {each}"
        for each in (SHIPPED, TUNED)
        if (each, peaked) in times and not is_peer
    ]
    return Row(what, 1e3 * seconds, "ms", "; ".join([*beside, peak_gb(device), how]))


def parity(stepped: Stepped, case: Case, peaked: bool) -> tuple[bool, str]:
    """Whether loss and embeddings' gradient of a step are right, and how far off they are, in
    words: beside the same in float64, among the same classes."""
    few = min(case.batch, COMPARED)
    embeddings_BD, labels_B = batch_of(case, few, peaked, stepped.rows_CD)
    ids, rows_SD = stepped.sample(labels_B), stepped.rows_CD.detach()
    if ids is not None:
        rows_SD = rows_SD[ids]
    targets_B = labels_B if ids is None else torch.searchsorted(ids, labels_B)
    right, d_right_BD = in_float64(embeddings_BD, rows_SD, targets_B)
    torch.manual_seed(SAMPLE)
    found, d_found_BD = stepped.step(embeddings_BD, labels_B)
    off = abs(float(found) - right) / right
    d_off = ((d_found_BD.double() - d_right_BD).norm() / d_right_BD.norm()).item()
    how = f"loss {right:.3g}, off by {off:.0e}, gradient by {d_off:.0e}"
    return off <= LIMIT and d_off <= LIMIT, how


def in_float64(embeddings_BD: Tensor, rows_SD: Tensor, targets_B: Tensor) -> tuple[float, Tensor]:
    """ArcFace's loss by autograd, in the form that does not cancel."""
    embeddings_BD = embeddings_BD.double().requires_grad_()
    logits_BS = 64 * F.normalize(embeddings_BD) @ F.normalize(rows_SD.double()).T
    target_B1 = logits_BS.gather(1, targets_B[:, None])
    negatives_BS = logits_BS.scatter(1, targets_B[:, None], -math.inf)
    margin_B = 64 * torch.cos(torch.acos(target_B1[:, 0] / 64) + 0.5)
    loss = F.softplus(negatives_BS.logsumexp(1) - margin_B).mean()
    [d_embeddings_BD] = torch.autograd.grad(loss, embeddings_BD)
    return loss.item(), d_embeddings_BD


def batch_of(case: Case, size: int, peaked: bool, rows_CD: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings and labels of so many samples, at random or near the class centres."""
    device = rows_CD.device
    # Of others than the steps before have brought near to their centres.
    generator = torch.Generator(device).manual_seed(1 + peaked)
    labels_B = torch.randint(0, case.classes, (size,), generator=generator, device=device)
    noise_BD = torch.randn(size, D, generator=generator, device=device)
    embeddings_BD = F.normalize(noise_BD)
    if peaked:
        # Negatives have cosines of deviation D^-1/2: their log-sum-exp is known before.
        negatives = math.log(case.rate * case.classes) + 64**2 / (2 * D)
        noise = math.tan(math.acos((negatives + LEAD) / 64) - 0.5)
        embeddings_BD = F.normalize(rows_CD.detach()[labels_B].float()) + noise * embeddings_BD
    return embeddings_BD, labels_B


def peer(kind: type[Peer], case: Case, device: torch.device) -> Stepped:
    """A peer, which makes its tensors on the device that is the default meanwhile."""
    with device:
        made = kind(case.classes, case.rate)

    def step(embeddings_BD: Tensor, labels_B: Tensor) -> tuple[float | Tensor, Tensor]:
        torch.backends.cuda.matmul.allow_tf32 = kind is TunedPeer
        with device:
            return made.step(embeddings_BD, labels_B)

    def sample(labels_B: Tensor) -> Tensor | None:
        """What the step draws behind the same seed."""
        if case.rate >= 1:
            return None
        torch.manual_seed(SAMPLE)
        scores = torch.rand(case.classes, device=device)
        scores[labels_B] = 2
        return torch.topk(scores, int(case.rate * case.classes)).indices.sort().values

    return Stepped(made.weight, sample, step)


def ours(kind: str, case: Case, device: torch.device, kernels: bool = True) -> Stepped:
    """Our head with one of the settings of bench_head.py."""
    config = schema.Head(margin=ArcFace(), sample_rate=case.rate, **KINDS[kind])
    head = PartialFC(
        config, case.classes, D, seed=SEED, weight_decay=5e-4, device=device, kernels=kernels
    )
    position = 0

    def step(embeddings_BD: Tensor, labels_B: Tensor) -> tuple[float | Tensor, Tensor]:
        nonlocal position
        torch.backends.cuda.matmul.allow_tf32 = False
        count = len(labels_B)
        done = head.step(embeddings_BD, labels_B, lr=0.1, position=position, batch_size=count)
        position += count
        return done.loss, done.d_embeddings_ND

    def sample(labels_B: Tensor) -> Tensor | None:
        """What the next step draws, and the batch's own."""
        if case.rate >= 1:
            return None
        first = torch.from_numpy(blocks(case.classes, case.rate, SEED, position)).to(device)
        drawn = (first[:, None] * BLOCK + torch.arange(BLOCK, device=device)).flatten()
        ids: Tensor = torch.cat([drawn[drawn < case.classes], labels_B]).unique()
        return ids

    return Stepped(head.tensors()["rows"], sample, step)


if __name__ == "__main__":
    main()
