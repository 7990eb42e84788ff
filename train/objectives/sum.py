"""Several objectives at once: their losses add up."""

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.data.feed.loader import Batch
from manyfaces.data.feed.view import View
from manyfaces.train.objectives.objective import (
    Forward,
    Loss,
    Moment,
    MovingAverage,
    Objective,
    Setting,
    StatePart,
)
from manyfaces.train.parameter_groups import ParamGroup


class Sum(Objective):
    """The sum of objectives, each of which has multiplied its loss by its weight. Every view of the
    batch goes through the network once, whoever reads it; networks nest in the order given."""

    def __init__(self, of: Sequence[schema.Objective], setting: Setting) -> None:
        self.parts: dict[str, Objective] = {}
        for number, each in enumerate(of):
            word = str(each.word())
            name = word if word not in self.parts else f"{word}_{number}"
            self.parts[name] = each.build(setting=setting)
        self.tells_last = all(part.tells_last for part in self.parts.values())

    def views(self, main: View) -> Mapping[str, View]:
        return {
            name: view for part in self.parts.values() for name, view in part.views(main).items()
        }

    def network(self, backbone: nn.Module) -> nn.Module:
        return reduce(lambda network, part: part.network(network), self.parts.values(), backbone)

    def evaluated(self, backbone: nn.Module) -> nn.Module:
        return reduce(lambda found, part: part.evaluated(found), self.parts.values(), backbone)

    def groups(self, network: nn.Module, optimizer: schema.Optimizer) -> Sequence[ParamGroup]:
        """Those of the only part that says its own. Raises `UserError` where several do."""
        own = {
            name: part
            for name, part in self.parts.items()
            if type(part).groups is not Objective.groups
        }
        if len(own) > 1:
            raise UserError(
                f"objective sum: {' and '.join(own)} each say all parameter groups; one of them can"
            )
        for part in own.values():
            return part.groups(network, optimizer)
        return super().groups(network, optimizer)

    def prefetch(self, forward: Forward, batch: Batch, moment: Moment) -> None:
        for part in self.parts.values():
            part.prefetch(forward, batch, moment)

    def loss(self, forward: Forward, batch: Batch, moment: Moment) -> Loss:
        losses = {name: part.loss(forward, batch, moment) for name, part in self.parts.items()}
        each = list(losses.values())
        metrics = {f"loss_{name}": loss.value for name, loss in losses.items()}
        return Loss(
            surrogate=_sum([loss.surrogate for loss in each]),
            value=_sum([loss.value for loss in each]),
            finite=torch.stack([loss.finite for loss in each]).all(),
            last=torch.stack([loss.last for loss in each]).any(),
            checks={why: ok for loss in each for why, ok in loss.checks.items()},
            metrics=metrics | {name: n for loss in each for name, n in loss.metrics.items()},
        )

    def dry_run(self, forward: Forward) -> Tensor:
        return _sum([part.dry_run(forward) for part in self.parts.values()])

    def moving_averages(self, moment: Moment) -> Sequence[MovingAverage]:
        return [each for part in self.parts.values() for each in part.moving_averages(moment)]

    def after_step(self, network: nn.Module, moment: Moment) -> None:
        for part in self.parts.values():
            part.after_step(network, moment)

    def state(self) -> Mapping[str, StatePart]:
        return {name: kept for part in self.parts.values() for name, kept in part.state().items()}

    def numbers(self) -> Mapping[str, Mapping[str, float]]:
        return {name: n for part in self.parts.values() for name, n in part.numbers().items()}

    def restore(self, numbers: Mapping[str, Mapping[str, float]], before: schema.Config) -> None:
        for part in self.parts.values():
            part.restore(numbers, before)

    def forget(self, classes: Tensor) -> None:
        for part in self.parts.values():
            part.forget(classes)


def _sum(values: list[Tensor]) -> Tensor:
    return torch.stack([value.double() for value in values]).sum()
