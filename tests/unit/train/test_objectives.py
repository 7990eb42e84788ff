"""What objectives do with a batch in one process: sums, branches, what a checkpoint keeps of each,
and an objective of one's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from indented_code import indented_code
from pydantic import ValidationError
from torch import Tensor, nn

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.errors import UserError
from manyfaces.configs.objectives.custom import CustomObjective
from manyfaces.configs.objectives.margin_softmax import MarginSoftmax
from manyfaces.configs.objectives.sum import Sum
from manyfaces.configs.objectives.triplet import Triplet
from manyfaces.configs.orders.pk import PK
from manyfaces.configs.schema import Config, Data, Head, Objective
from manyfaces.data.feed.loader import Batch
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.models.backbones.output import Output
from manyfaces.models.head.exchange import Exchange, Told
from manyfaces.models.head.partial_fc import PartialFC
from manyfaces.train.checkpoint.network import Built, Network
from manyfaces.train.checkpoint.snapshot import HostCopy, Snapshot
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.objectives import objective as base
from manyfaces.train.objectives.objective import (
    Forward,
    HeldByRank0,
    Moment,
    Setting,
    ShardedRows,
)
from manyfaces.train.objectives.triplet_loss import triplet_loss
from manyfaces.train.step import train_step

N, D, CLASSES = 12, 8, 5
MOMENT = Moment(position=0, batch_size=N, lr=0.1)
SOFTMAX, TRIPLET = MarginSoftmax(), Triplet(margin=0.4, weight=2.0)


def config_of(objective: Objective, sample_rate: float = 1.0) -> Config:
    return Config(
        model=MobileFaceNet(embedding_dim=D),
        data=Data(path="faces", order=PK(images_per_identity=4)),
        head=Head(scale=16.0, sample_rate=sample_rate),
        objective=objective,
    )


def no_encoder(path: str) -> Encoder:
    raise AssertionError(path)


def built(objective: Objective, sample_rate: float = 1.0) -> base.Objective:
    config = config_of(objective, sample_rate)
    setting = Setting(config, CLASSES, (0,), torch.device("cpu"), None, no_encoder)
    made = config.objective.build(setting=setting)
    assert isinstance(made, base.Objective)
    return made


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(0)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, -1, 0])
    return Batch(0, np.arange(N), {"main": torch.randn(N, D)}, labels)


def forward(batch: Batch, calls: list[int] | None = None) -> tuple[Forward, Tensor]:
    """A network that returns its input, which is a leaf, twice as a second branch."""
    embeddings_ND = batch.images["main"].clone().requires_grad_()

    def run(images: Tensor) -> Output:
        if calls is not None:
            calls.append(1)
        return Output({"main": embeddings_ND, "second": 2 * embeddings_ND})

    return Forward(run, batch.images), embeddings_ND


def gradient(objective: base.Objective, batch: Batch) -> tuple[base.Loss, Tensor]:
    shown, leaf = forward(batch)
    loss = objective.loss(shown, batch, MOMENT)
    loss.surrogate.backward()
    assert leaf.grad is not None
    return loss, leaf.grad


@pytest.mark.parametrize(("rate", "order"), [(1.0, "run tell"), (0.5, "tell run")])
def test_labels_are_told_before_the_network_runs_only_where_classes_are_drawn(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, rate: float, order: str
) -> None:
    calls, tell = [], Exchange.tell

    def told(*given: Any, **more: Any) -> Told:
        calls.append("tell")
        return tell(*given, **more)

    def run(images: Tensor) -> Output:
        calls.append("run")
        return Output({"main": images.clone().requires_grad_()})

    monkeypatch.setattr(Exchange, "tell", told)
    objective, shown = built(SOFTMAX, rate), Forward(run, batch.images)
    objective.prefetch(shown, batch, MOMENT)
    objective.loss(shown, batch, MOMENT)
    assert " ".join(calls) == order


def test_a_sum_adds_losses_and_gradients_and_shows_the_batch_once(batch: Batch) -> None:
    softmax, triplet = (gradient(built(each), batch) for each in (SOFTMAX, TRIPLET))
    both = built(Sum(of=(SOFTMAX, TRIPLET), weight=0.5))
    loss, grad = gradient(both, batch)
    assert float(loss.value) == pytest.approx(
        0.5 * (float(softmax[0].value) + float(triplet[0].value)), rel=1e-12
    )
    torch.testing.assert_close(grad, 0.5 * (softmax[1] + triplet[1]))
    assert bool(loss.finite)
    assert not bool(loss.last)
    assert set(loss.metrics) == {"loss_margin_softmax", "loss_triplet"}

    calls: list[int] = []
    shown, _ = forward(batch, calls)
    built(Sum(of=(SOFTMAX, TRIPLET))).loss(shown, batch, MOMENT)
    assert calls == [1]


def test_the_weight_of_a_sum_reaches_the_class_rows(batch: Batch) -> None:
    alone = built(MarginSoftmax(weight=0.01))
    part = built(Sum(of=(MarginSoftmax(weight=0.1), TRIPLET), weight=0.1))
    for objective in (alone, part):
        gradient(objective, batch)
    mine, theirs = (each.state()["head"].tensors for each in (part, alone))
    torch.testing.assert_close(mine["rows"], theirs["rows"], rtol=0, atol=0)
    whole = built(SOFTMAX)
    gradient(whole, batch)
    assert not torch.allclose(mine["rows"], whole.state()["head"].tensors["rows"])
    with pytest.raises(ValidationError, match="a sum reads no branch itself"):
        Sum(of=(SOFTMAX, TRIPLET), branch="second")
    nested = Sum(of=(Sum(of=(SOFTMAX, TRIPLET), weight=0.5), TRIPLET), weight=0.1)
    assert [part.weight for part in nested.parts()] == pytest.approx([0.05, 0.1, 0.2])


def test_triplets_alone_are_the_gradient_of_the_plain_loss(batch: Batch) -> None:
    loss, grad = gradient(built(TRIPLET), batch)
    leaf = batch.images["main"].clone().requires_grad_()
    unit = nn.functional.normalize(leaf)
    valid = batch.labels_N != -1
    value, d_unit = triplet_loss(
        torch.where(valid[:, None], unit, 0), batch.labels_N, 0, N, TRIPLET
    )
    (unit * d_unit)[valid].sum().backward()
    assert float(loss.value) == pytest.approx(float(value.detach()))
    torch.testing.assert_close(grad, leaf.grad)
    assert built(TRIPLET).state() == {}


def test_an_objective_reads_its_branch(batch: Batch) -> None:
    main, second = (
        gradient(built(Triplet(margin=0.4, branch=name)), batch)[1] for name in ("main", "second")
    )
    torch.testing.assert_close(main, second)  # a loss of unit vectors does not see the factor
    with pytest.raises(UserError, match=r"no embeddings 'third', only main, second"):
        gradient(built(Triplet(branch="third")), batch)


def test_what_a_checkpoint_keeps_of_a_sum(batch: Batch) -> None:
    both = built(Sum(of=(TRIPLET, SOFTMAX)))
    state = both.state()
    assert set(state) == {"head"}
    assert state["head"].tensors["rows"].shape == (CLASSES, D)
    assert config_of(Sum(of=(TRIPLET, SOFTMAX))).has_head
    assert not config_of(TRIPLET).has_head


def test_one_that_can_make_no_further_step_tells_it(batch: Batch) -> None:
    for each in (SOFTMAX, TRIPLET, Sum(of=(SOFTMAX, TRIPLET))):
        shown, _ = forward(batch)
        moment = Moment(0, N, 0.1, last=True)
        assert bool(built(each).loss(shown, batch, moment).last)


def test_a_step_prefetches_before_the_network_runs(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = built(Sum(of=(TRIPLET, SOFTMAX)))
    calls: list[str] = []
    _, leaf = forward(batch)

    def prefetch(head: PartialFC, position: int, batch_size: int, labels_B: Tensor) -> None:
        calls.append("prefetch")

    class StandIn:
        module = nn.Identity()

        def run(self, images: Tensor) -> Output:
            calls.append("network")
            return Output({"main": leaf})

        def backward(self, loss: Tensor) -> None:
            loss.backward()

        def step(self, lr: float) -> float:
            return 1.0

    monkeypatch.setattr(PartialFC, "prefetch", prefetch)
    train_step(StandIn(), both, batch, MOMENT, seed=0, rank=0)  # type: ignore[arg-type]
    assert calls == ["prefetch", "network"]


def test_what_rank_0_holds_is_copied_there_alone() -> None:
    mean = torch.arange(6.0).reshape(2, 3).T
    rows = ShardedRows({"rows": torch.ones(2, 3)}, num_rows=4)
    config = Config(model=MobileFaceNet())
    parts = {"mean": HeldByRank0({"mean": mean}), "rows": rows}
    whole = Snapshot(RunState(config, "", 4, seed=0), {"w": mean}, {}, parts)
    written, elsewhere = (HostCopy().take(whole.of_rank(rank)).objective for rank in (0, 1))
    assert written["mean"].tensors["mean"].is_contiguous()
    assert torch.equal(written["mean"].tensors["mean"], mean)
    assert not elsewhere["mean"].tensors
    assert set(elsewhere["rows"].tensors) == {"rows"}


def test_snapshots_share_the_memory_that_they_are_copied_to() -> None:
    rows = torch.ones(2, 3)
    state = RunState(Config(model=MobileFaceNet()), "", 4, seed=0)
    copy, snapshot = HostCopy(), Snapshot(state, {}, {}, {"rows": ShardedRows({"rows": rows}, 4)})
    first = copy.take(snapshot).objective["rows"].tensors["rows"]
    rows += 1
    assert torch.equal(first, torch.ones(2, 3))
    second = copy.take(snapshot).objective["rows"].tensors["rows"]
    assert second.data_ptr() == first.data_ptr()
    assert torch.equal(second, rows)


def test_the_backbone_is_told_apart_from_what_stands_beside_it() -> None:
    backbone = nn.Linear(2, 2)
    whole = nn.Sequential(nn.Sequential(backbone), nn.Linear(2, 1))
    built = Built(backbone, None, None)
    own, beside = Network(whole, built).split(whole.state_dict())
    assert set(own) == {"weight", "bias"}
    assert set(beside) == {"1.weight", "1.bias"}
    assert torch.equal(own["weight"], backbone.weight)
    assert Network(backbone, built).split(backbone.state_dict())[1] == {}
    with pytest.raises(UserError, match="does not have the backbone as a part"):
        Network(nn.Linear(2, 2), built)


OWN = '''
import torch
from manyfaces.train.objectives.objective import Loss, Objective


class Compact(Objective):
    """Short embeddings."""

    def __init__(self, factor, setting):
        self.factor = factor

    def loss(self, forward, batch, moment):
        value = self.factor * forward().embeddings["main"].square().mean()
        return Loss(value, value.detach(), value.isfinite(), torch.tensor(moment.last))
'''


def test_the_objective_that_the_documentation_shows(batch: Batch, tmp_path: Path) -> None:
    file = tmp_path / "short.py"
    file.write_text(indented_code(base))
    own = CustomObjective(file=str(file), name="ShortEmbeddings", parameters={"factor": 3.0})
    loss, _ = gradient(built(own), batch)
    expected = batch.images["main"].square().mean()
    assert float(loss.value) == pytest.approx(3 * float(expected))


def test_an_objective_of_ones_own(batch: Batch, tmp_path: Path) -> None:
    file = tmp_path / "compact.py"
    file.write_text(OWN)
    own = CustomObjective(file=str(file), name="Compact", parameters={"factor": 3.0})
    loss, grad = gradient(built(own), batch)
    expected = batch.images["main"]
    assert float(loss.value) == pytest.approx(3 * float(expected.square().mean()))
    torch.testing.assert_close(grad, 6 * expected / (N * D))
    gradient(built(Sum(of=(own, TRIPLET))), batch)
    with pytest.raises(UserError, match=r"Compact.*unexpected keyword argument 'weight'"):
        built(own.model_copy(update={"weight": 0.5}))
    missing = CustomObjective(file=str(file), name="Missing")
    with pytest.raises(UserError, match=r"compact\.py: Missing"):
        built(missing)
