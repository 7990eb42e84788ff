"""What objectives without labels have in common: views, a student and its moving average, and what
changes with the position."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from manyfaces.configs import plan, schema
from manyfaces.configs.multi_crop import NUM_GLOBAL
from manyfaces.configs.objectives import dino as settings_of
from manyfaces.data.feed.view import View
from manyfaces.models.backbones.output import Output
from manyfaces.models.backbones.self_distilled import PROJECTED, ProjectionHead, SelfDistilled
from manyfaces.models.head.collectives import Ranks
from manyfaces.train.objectives.objective import (
    Forward,
    Moment,
    MovingAverage,
    Objective,
    Setting,
)
from manyfaces.train.parameter_groups import ParamGroup, groups_of


class SelfDistillation(Objective):
    """A student learns from several views what its own moving average, the teacher, makes of the
    global ones. What is evaluated and exported is the teacher's backbone."""

    tells_last = True

    def __init__(self, settings: settings_of.SelfDistillation, setting: Setting) -> None:
        config = setting.config
        self.crops, self.common = settings.crops, settings
        self.local_hw = settings.crops.local_hw(config)
        self.dim, self.device = config.model.embedding_dim, setting.device
        self.ranks = Ranks(setting.group)
        num_images = setting.num_images
        self.total = plan.total_samples(config, num_images)
        self.frozen_samples, self.warmup_samples = (
            round(Fraction(str(epochs)) * num_images)
            for epochs in (settings.freeze_prototypes_epochs, settings.warmup_teacher_epochs)
        )
        self.net: SelfDistilled | None = None

    def views(self, main: View) -> Mapping[str, View]:
        """The global and the local ones, in this order."""
        shown = {n: View(main.image_hw, each) for n, each in self.crops.global_views().items()}
        local = self.crops.local_views().items()
        return shown | {name: View(self.local_hw, each) for name, each in local}

    def network(self, backbone: nn.Module) -> nn.Module:
        self.net = SelfDistilled(backbone, self.head(self.dim), self.common.branch)
        return self.net

    def head(self, dim: int) -> ProjectionHead:
        """A projection head on so many numbers."""
        common = self.common
        return ProjectionHead(dim, common.hidden_dim, common.bottleneck_dim, common.prototypes)

    def evaluated(self, backbone: nn.Module) -> nn.Module:
        assert self.net is not None
        return self.net.teacher.backbone

    def groups(self, network: nn.Module, optimizer: schema.Optimizer) -> Sequence[ParamGroup]:
        """As usual, but that the prototypes, of which the directions count alone, do not decay: so
        they stay exactly as they are while they have no gradient."""
        found = []
        for group in groups_of(network, optimizer):
            own = {n: p for n, p in group.parameters.items() if n.endswith(".prototypes")}
            others = {n: p for n, p in group.parameters.items() if n not in own}
            found += [replace(group, parameters=others)] if others else []
            if own:
                name = f"{group.name}, prototypes"
                found.append(replace(group, name=name, parameters=own, weight_decay=0.0))
        return found

    def moving_averages(self, moment: Moment) -> Sequence[MovingAverage]:
        assert self.net is not None
        return (MovingAverage(self.net.teacher, self.net.student, self.momentum(moment.position)),)

    def momentum(self, position: int) -> float:
        """What the teacher keeps of itself at this position: from `momentum` to 1 as half a
        cosine."""
        t = min(position / self.total, 1.0)
        return 1 - (1 - self.common.momentum) * (1 + math.cos(math.pi * t)) / 2

    def teacher_temperature(self, position: int) -> float:
        """The temperature of the teacher's softmax at this position."""
        first, last = self.common.warmup_teacher_temperature, self.common.teacher_temperature
        if position >= self.warmup_samples:
            return last
        return first + (last - first) * position / self.warmup_samples

    def dry_run(self, forward: Forward) -> Tensor:
        self.show_teacher(forward)
        given = [
            each for output in self.show_student(forward) for each in output.embeddings.values()
        ]
        return torch.stack([each.sum() for each in given]).sum() * 1e-6

    def show_teacher(self, forward: Forward) -> Output:
        """What the teacher makes of the global views, [2 N, ...], without a gradient."""
        assert self.net is not None
        with self.net.as_teacher():
            return forward.together(list(self.crops.global_views()))

    def show_student(self, forward: Forward) -> list[Output]:
        """What the student makes of the global views, [2 N, ...], and of the local ones, where
        there are any: views of one size go through it together, as in DINO."""
        shown = [list(self.crops.global_views()), list(self.crops.local_views())]
        return [forward.together(names) for names in shown if names]

    def projected(self, outputs: Sequence[Output], num_images: int) -> Tensor:
        """The student's cosines with the prototypes by view, [V, N, K]."""
        rows = torch.cat([output.embeddings[PROJECTED] for output in outputs])
        return rows.view(-1, num_images, rows.shape[1])

    def hold_prototypes(self, moment: Moment) -> None:
        """Have the prototypes stay as they are in a step at the start of the run."""
        assert self.net is not None
        for part in self.net.student.modules():
            if isinstance(part, ProjectionHead):
                part.prototypes_are_fixed = moment.position < self.frozen_samples


def by_view(rows: Tensor) -> Tensor:
    """[2 N, ...] of the global views, one behind the other, as [2, N, ...]."""
    return rows.view(NUM_GLOBAL, -1, *rows.shape[1:])
