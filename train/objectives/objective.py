"""What an objective is: everything that differs between the ways to train an encoder.

The loop and the step know this interface only. An objective says how images are shown, what network
is trained, with which learning rates, and turns a batch into a loss; what it learns beside the
network (class centres, a teacher) it holds, steps and hands to the checkpoint itself.

An objective of one's own stands in any file, for `objective: {kind: custom, file, name,
parameters}`:

    import torch
    from manyfaces.train.objectives.objective import Loss, Objective

    class ShortEmbeddings(Objective):
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def loss(self, forward, batch, moment):
            value = self.factor * forward().embeddings["main"].square().mean()
            return Loss(value, value.detach(), value.isfinite(), torch.tensor(moment.last))
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Config
from manyfaces.configs.split import batch_share
from manyfaces.data.feed.loader import Batch
from manyfaces.data.feed.view import View
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.models.backbones.output import Output
from manyfaces.models.head.collectives import Ranks
from manyfaces.models.head.exchange import Exchange, JointBatch, Told
from manyfaces.models.head.rows import BeforeChange
from manyfaces.train.parameter_groups import ParamGroup, groups_of


@dataclass(frozen=True)
class Setting:
    """What a run hands to its objective when it is built."""

    config: Config
    num_identities: int
    first_classes: tuple[int, ...]
    """The first class of each dataset of a mixture."""
    device: torch.device
    group: ProcessGroup | None
    """The ranks that train together; None is this process alone."""
    open_encoder: Callable[[str], Encoder]
    """A trained network by the path of its weights, on the device. Raises `UserError`."""
    num_images: int = 1
    """Images of the dataset, by which epochs are counted."""


@dataclass(frozen=True)
class Moment:
    """Where in the run a step stands."""

    position: int
    """Samples before the global batch in the stream."""
    batch_size: int
    """Samples of the global batch."""
    lr: float
    last: bool = False
    """This rank can make no further step, or wants a checkpoint behind this one."""


@dataclass(frozen=True)
class Loss:
    """The loss of a global batch; tensors on the device, so that nothing waits for it."""

    surrogate: Tensor
    """A number whose gradient, averaged over the ranks, is that of `value` for the network."""
    value: Tensor
    """The loss to report, a mean over the global batch, the same on all ranks."""
    finite: Tensor
    """bool []: the loss is a number on this rank or, from an objective that `tells_last`, on all
    ranks."""
    last: Tensor
    """bool []: `Moment.last` of this rank or, from an objective that `tells_last`, of any rank."""
    checks: Mapping[str, Tensor] = field(default_factory=dict)
    """What is wrong with the program if the tensor, bool [], is false."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Further numbers to record, by name."""


Watch = Callable[[BeforeChange | None], None]
"""Has every change of some rows told from now on, before it is made; None ends it."""


@dataclass(frozen=True)
class ShardedRows:
    """State that is sharded by rows: rank r holds `configs.split.class_share` of them."""

    tensors: Mapping[str, Tensor]
    """This rank's rows of each tensor: the tensors themselves, not copies."""
    num_rows: int
    """Rows of all ranks together."""
    watch: Watch | None = None
    """Has the changes of these tensors told: so they need not all be copied between two steps, as
    they are without it."""


@dataclass(frozen=True)
class HeldByRank0:
    """State that is the same on all ranks; rank 0 writes it."""

    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class MovingAverage:
    """Two parts of the network with the same weights by name, of which one follows the other."""

    into: nn.Module
    """Its weights are frozen, and are moved behind each step."""
    of: nn.Module
    momentum: float
    """What `into` keeps of itself: it gets 1 - `momentum` of the other's weights."""


StatePart = ShardedRows | HeldByRank0


class Forward:
    """Shows the views of one batch to the network, each once, whoever asks for it, and tells ranks
    of each other's."""

    def __init__(
        self,
        run: Callable[[Tensor], Output],
        images: Mapping[str, Tensor],
        num_micro_batches: int = 1,
        trial: Callable[[Tensor], AbstractContextManager[Output]] | None = None,
    ) -> None:
        self._run, self._images, self._count = run, dict(images), num_micro_batches
        self._trial = trial
        self._outputs: dict[str, Output] = {}
        self._told: tuple[Tensor, Told] | None = None
        self._joint: dict[tuple[str, torch.dtype], JointBatch] = {}

    def __call__(self, view: str = "main") -> Output:
        """The network's output for a view of the batch."""
        if view not in self._outputs:
            self._outputs[view] = self._run(self._images[view])
        return self._outputs[view]

    def images(self, view: str) -> Tensor:
        """What a view of the batch shows: uint8 RGB [N, height, width, 3]."""
        return self._images[view]

    def show(self, view: str, images_NHWC: Tensor) -> None:
        """Show these images in place of a view's, which the network must not have seen yet: called
        in `Objective.prefetch`."""
        assert view not in self._outputs, f"the network has seen {view}"
        self._images[view] = images_NHWC

    def trial(self, images_NHWC: Tensor) -> AbstractContextManager[Output]:
        """The network's output for other images, RGB [N, height, width, 3] of any dtype from 0 to
        255, through which gradients reach the images. When the block is left nothing stays of it:
        the network's buffers are what they were, and no weight has a gradient of it."""
        assert self._trial is not None, "of a batch that is trained on"
        return self._trial(images_NHWC)

    def together(self, views: Sequence[str]) -> Output:
        """The network's output for several views of one size, the images of one behind those of the
        other. It is not kept: each call runs the network."""
        return self._run(torch.cat([self._images[view] for view in views]))

    def through(self, other: Callable[[Tensor], Tensor], view: str = "main") -> Tensor:
        """What another function makes of a view's images, [N, ...]: as many of them at a time as
        the network is shown, so that it needs no more memory."""
        images = self._images[view]
        shares = [batch_share(len(images), i, self._count) for i in range(self._count)]
        made = [other(images[first:after]) for first, after in shares]
        return torch.cat(made) if len(made) > 1 else made[0]

    def embeddings(self, branch: str, view: str = "main") -> Tensor:
        """The embeddings of this name, [N, D] float32. Raises `UserError` where there are none."""
        return self.branch_of(self(view), branch)

    @staticmethod
    def branch_of(output: Output, branch: str) -> Tensor:
        """The embeddings of this name in an output. Raises `UserError` where there are none."""
        found = output.embeddings
        if branch not in found:
            raise UserError(
                f"objective: the backbone has no embeddings {branch!r}, only {', '.join(found)}; "
                "set the objective's branch"
            )
        return found[branch]

    def scores(self, name: str, view: str = "main") -> Tensor:
        """The score of this name that the network gives each image of a view, [N] float32."""
        return self(view).scores[name]

    def told(self, labels_N: Tensor, moment: Moment, ranks: Ranks) -> Told:
        """What all ranks know of the batch before its embeddings; the same labels are told once,
        whoever asks. Collective."""
        if self._told is None or self._told[0] is not labels_N:
            # The type of embeddings does not matter here.
            exchange = Exchange(ranks, moment.batch_size, torch.float32)
            self._told = labels_N, exchange.tell(labels_N, last=moment.last)
        return self._told[1]

    def joint(
        self, branch: str, labels_N: Tensor, moment: Moment, ranks: Ranks, wire_dtype: torch.dtype
    ) -> JointBatch:
        """The embeddings of this name and the batch's labels as all ranks hold them, for losses
        over the whole batch; those that read the same branch share one exchange. Collective."""
        key = branch, wire_dtype
        if key not in self._joint:
            exchange = Exchange(ranks, moment.batch_size, wire_dtype)
            embeddings_ND = self.embeddings(branch)
            told = self.told(labels_N, moment, ranks)
            self._joint[key] = JointBatch(exchange, embeddings_ND, told)
        return self._joint[key]


class Objective(ABC):
    """What is optimised. All ranks call its methods together, in the same order."""

    tells_last: bool = False
    """`Loss.last` and `Loss.finite` are the same on all ranks, in messages that the objective sends
    anyway; else the step sends one for them."""

    def views(self, main: View) -> Mapping[str, View]:
        """How each image is shown, by name; `main` is what the configuration says."""
        return {"main": main}

    def network(self, backbone: nn.Module) -> nn.Module:
        """What is trained by gradient: the backbone and what stands beside it. It takes images and
        returns `Output`; the backbone has to be a part of it, or itself."""
        return backbone

    def evaluated(self, backbone: nn.Module) -> nn.Module:
        """What is evaluated and exported, and has the backbone's file in a checkpoint, once the
        network is made: the backbone, or a copy of it in the network, such as a moving average."""
        return backbone

    def groups(self, network: nn.Module, optimizer: Any) -> Sequence[ParamGroup]:
        """The parameters that are trained, with learning rates and decay by part."""
        return groups_of(network, optimizer)

    def prefetch(self, forward: Forward, batch: Batch, moment: Moment) -> None:
        """Called before the batch goes through the network: what does not need the embeddings, and
        can be done while the device computes them. `forward` and `batch` are those that `loss` will
        be given."""
        return

    @abstractmethod
    def loss(self, forward: Forward, batch: Batch, moment: Moment) -> Loss:
        """The loss of a batch; whatever the objective holds itself is stepped here."""

    def dry_run(self, forward: Forward) -> Tensor:
        """A number that every trained parameter has a gradient of, for a step at learning rate 0
        before the run: it finds lack of memory in minutes."""
        output = forward()
        given = [*output.embeddings.values(), *output.scores.values()]
        return torch.stack([each.sum() for each in given]).sum() * 1e-6

    def moving_averages(self, moment: Moment) -> Sequence[MovingAverage]:
        """Parts of the network that follow others, and are moved when the network has taken its
        step; before `after_step`."""
        return ()

    def after_step(self, network: nn.Module, moment: Moment) -> None:
        """Called when the network has taken its step."""
        return

    def state(self) -> Mapping[str, StatePart]:
        """What a checkpoint keeps besides the network, by name; a resume fills the tensors in
        place."""
        return {}

    def numbers(self) -> Mapping[str, Mapping[str, float]]:
        """Running numbers that a checkpoint keeps, by the name of a part; the same on all ranks."""
        return {}

    def restore(self, numbers: Mapping[str, Mapping[str, float]], before: Config) -> None:
        """Called after the tensors of `state` were filled from a checkpoint, with its numbers and
        its configuration."""
        return

    def forget(self, classes: Tensor) -> None:
        """Called once before the first step: these class ids, int64, are no classes any more."""
        return
