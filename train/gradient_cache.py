"""Gradient caching (Gao et al., arXiv 2101.06983): a step on a batch whose activations do not fit
in memory.

The network embeds the batch in micro-batches, without a graph. The objective makes one step on all
embeddings. Then the network sees each micro-batch again, with a graph, and is given its part of the
gradient. As a loss depends on the network through its outputs alone, the gradient is that of one
large batch; it costs a second forward pass, and memory for one micro-batch.

Both passes have to give the same embeddings. So each micro-batch draws the same random numbers in
both, and the network's buffers, such as BatchNorm's running statistics, are put back before the
second pass, which moves them in the same order as the first did: they move once a step.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from manyfaces.configs.errors import UserError
from manyfaces.configs.split import batch_share
from manyfaces.models.backbones.output import Output
from manyfaces.train.engine import Engine

FARTHEST = 0.05
"""How far the embeddings of the two passes may be from each other, as a share of their length:
rounding, in bfloat16 too, moves them by less, and another dropout by more."""


class _Seen(NamedTuple):
    """Images that went through the network, and what came out of it."""

    images_NHWC: Tensor
    output: Output
    """Leaves of the objective's graph."""


class GradientCache:
    """The passes of one step over the network, for a worker's share in `num_micro_batches` parts.

    `run` puts images through the network, as `engine.run` does; `seed(i)` sets the random numbers
    of the i-th micro-batch that it sees.
    """

    def __init__(
        self,
        engine: Engine,
        run: Callable[[Tensor], Output],
        seed: Callable[[int], object],
        num_micro_batches: int,
    ) -> None:
        self._engine, self._run, self._seed = engine, run, seed
        self._count = num_micro_batches
        self._buffers = engine.copy_buffers()
        self._seen: list[_Seen] = []
        self._is_same = torch.ones((), dtype=torch.bool, device=engine.device)

    def run(self, images_NHWC: Tensor) -> Output:
        """As `Engine.run`; the output's gradient goes to the network by `backward` alone."""
        first = len(self._seen) * self._count
        outputs = []
        with torch.no_grad():
            for number, part in enumerate(self._parts(images_NHWC)):
                self._seed(first + number)
                outputs.append(self._run(images_NHWC[part]))
        embeddings = {
            name: torch.cat([output.embeddings[name] for output in outputs]).requires_grad_()
            for name in outputs[0].embeddings
        }
        scores = {
            name: torch.cat([output.scores[name] for output in outputs]).requires_grad_()
            for name in outputs[0].scores
        }
        tokens = [output.tokens_NTD for output in outputs if output.tokens_NTD is not None]
        tokens_NTD = torch.cat(tokens).requires_grad_() if tokens else None
        self._seen.append(_Seen(images_NHWC, Output(embeddings, tokens_NTD, scores)))
        return self._seen[-1].output

    def backward(self, surrogate: Tensor) -> None:
        """As `Engine.backward`. Raises `UserError` where the surrogate depends on the network's
        weights in another way than through what it returned, or not at all on what it returned."""
        self._check_leaves(surrogate)
        if surrogate.requires_grad:
            surrogate.backward()
        self._engine.put_back(self._buffers)
        parts = [(seen, part) for seen in self._seen for part in self._parts(seen.images_NHWC)]
        has_gradient = [any(t.grad is not None for t in _tensors(seen.output)) for seen, _ in parts]
        if not any(has_gradient):
            raise UserError(
                "the objective's loss does not depend on what the network returns: the network has "
                "no gradient; compute the surrogate of its Loss from what forward gives"
            )
        last = max(number for number, has in enumerate(has_gradient) if has)
        for number, (seen, part) in enumerate(parts):
            self._seed(number)
            with torch.set_grad_enabled(has_gradient[number]):
                again = self._run(seen.images_NHWC[part])
            before_ND = seen.output.embeddings["main"].detach()[part]
            moved = torch.linalg.vector_norm(again.embeddings["main"].detach() - before_ND)
            # A number that is no number is told elsewhere.
            self._is_same &= ~(moved > FARTHEST * torch.linalg.vector_norm(before_ND))
            if has_gradient[number]:
                pairs = zip(_tensors(again), _tensors(seen.output), strict=True)
                terms = [
                    (tensor * leaf.grad[part]).sum().float()
                    for tensor, leaf in pairs
                    if leaf.grad is not None
                ]
                self._engine.backward(torch.stack(terms).sum(), is_last=number == last)

    def check(self) -> None:
        """Raise `UserError`, on every rank alike, where the two passes gave other embeddings on any
        of them; waits for the device. Collective."""
        # The others must not wait in their next collective for a rank that has raised.
        num_moved = (~self._is_same).to(torch.int32)
        dist.all_reduce(num_moved)
        if bool(num_moved):
            raise UserError(
                "the network returned other embeddings when it was shown the same images again, "
                "with the same random numbers of torch and the same buffers: it does not go with "
                "train.micro_batch_size, which has to be null"
            )

    def _parts(self, images_NHWC: Tensor) -> list[slice]:
        shares = (batch_share(len(images_NHWC), i, self._count) for i in range(self._count))
        return [slice(*share) for share in shares]

    def _check_leaves(self, surrogate: Tensor) -> None:
        """Raise `UserError` where a weight of the network is a leaf of the surrogate's graph."""
        weights = {id(weight): name for name, weight in self._engine.parameters.items()}
        found, to_visit = set(), [surrogate.grad_fn]
        while to_visit:
            node = to_visit.pop()
            if node is None or node in found:
                continue
            found.add(node)
            to_visit += [following for following, _ in node.next_functions]
            name = weights.get(id(getattr(node, "variable", None)))
            if name is not None:
                raise UserError(
                    f"the objective's loss reads the network's weight {name} itself, and not only "
                    "what the network returns: it does not go with train.micro_batch_size, which "
                    "has to be null"
                )


def _tensors(output: Output) -> list[Tensor]:
    tokens = [] if output.tokens_NTD is None else [output.tokens_NTD]
    return [*output.embeddings.values(), *output.scores.values(), *tokens]
