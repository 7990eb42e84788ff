"""CR-FIQA on 1 to 3 real ranks against its definition: every sample's cosines with every class, one
by one in float64, and autograd through the score."""

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from dense_head import DenseHead
from launcher import run_ranks
from torch import Tensor, nn

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.margins.adaface import AdaFace
from manyfaces.configs.margins.sphereface2 import SphereFace2
from manyfaces.configs.objectives.cr_fiqa import CRFIQA
from manyfaces.configs.objectives.sum import Sum
from manyfaces.configs.objectives.triplet import Triplet
from manyfaces.configs.orders.pk import PK
from manyfaces.configs.schema import Config, Data, Head, Objective, Train
from manyfaces.configs.split import batch_share
from manyfaces.models.head import sampling

C, D, B, SEED = 300, 12, 17, 0
CPU = torch.device("cpu")
COLLECTIVES = 6
"""Two all-gathers, what comes back, a sum and a maximum of the head and a sum of the quality's
loss."""


class Case(NamedTuple):
    head: Head
    settings: CRFIQA
    num_classes: int = C


CASES = [
    Case(Head(chunk_classes=37), CRFIQA()),
    Case(Head(sub_centers=3, chunk_classes=64), CRFIQA(weight=0.3, quality_weight=40.0)),
    Case(Head(sample_rate=0.3), CRFIQA(beta=0.05)),
    Case(Head(margin=AdaFace()), CRFIQA(formula="released")),
    Case(Head(margin=SphereFace2(), filter_above=0.3), CRFIQA()),
    Case(Head(), CRFIQA(), num_classes=1),  # no other class: no ratio to learn
]


def batch(case: Case) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(8)
    labels_B = torch.arange(B) * 7 % case.num_classes
    labels_B[4] = -1
    embeddings_BD = torch.randn(B, D, generator=random) * (0.2 + torch.rand(B, 1, generator=random))
    return embeddings_BD, labels_B


def score_head() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(9)
    return torch.randn(1, D, generator=random), torch.randn(1, generator=random)


def near(rows_CD: Tensor, case: Case) -> Tensor:
    """Rows of which those of the batch's classes lie near the samples, so that ratios differ."""
    embeddings_BD, labels_B = batch(case)
    rows_CD = rows_CD.clone()
    for i in (0, 3, 5, 8):
        own_D = embeddings_BD[i] / embeddings_BD[i].norm()
        rows_CD[labels_B[i]] = 0.01 * (own_D + 0.1 * (i + 1) * torch.ones(D) / math.sqrt(D))
    return rows_CD


def no_encoder(path: str) -> Any:
    raise AssertionError(path)


def config_of(case: Case, objective: Objective) -> Config:
    return Config(
        model=MobileFaceNet(embedding_dim=D),
        data=Data(path="faces", order=PK(images_per_identity=2)),
        train=Train(batch_size=18),
        head=case.head,
        objective=objective,
    )


def steps_of_a_rank() -> list[dict[str, Any]]:
    # Ranks import the objectives, with the data they know of, only where they are needed.
    from manyfaces.data.feed.loader import Batch
    from manyfaces.train.objectives.margin_softmax import MarginSoftmax
    from manyfaces.train.objectives.objective import Forward, Moment, Setting

    group, facts = dist.group.WORLD, []
    assert group is not None
    lo, hi = batch_share(B, dist.get_rank(), dist.get_world_size())
    for case in CASES:
        setting = Setting(
            config_of(case, case.settings), case.num_classes, (0,), CPU, group, no_encoder
        )
        made = case.settings.build(setting=setting)
        assert isinstance(made, MarginSoftmax)
        head = made.head
        rows = [made.head.sub_centers[k].tensors()["rows"] for k in range(case.head.sub_centers)]
        rows[0].copy_(near(whole_rows(case)[0], case)[head.lo : head.hi])
        network = made.network(nn.Identity())
        weights = dict(network.named_parameters())
        assert set(weights) == {"scores.quality.weight", "scores.quality.bias"}
        with torch.no_grad():
            for parameter, value in zip(weights.values(), score_head(), strict=True):
                parameter.copy_(value)
        embeddings_BD, labels_B = batch(case)
        leaf_ND = embeddings_BD[lo:hi].clone().requires_grad_()
        shown = Batch(0, np.arange(lo, hi), {"main": leaf_ND}, labels_B[lo:hi])
        before = group._get_sequence_number_for_group()
        loss = made.loss(
            Forward(network, shown.images), shown, Moment(position=0, batch_size=B, lr=0.1)
        )
        loss.surrogate.backward()
        facts.append(
            {
                "value": loss.value.item(),
                "metrics": {name: number.item() for name, number in loss.metrics.items()},
                "grads": {name: p.grad for name, p in weights.items()},
                "d_embeddings": leaf_ND.grad,
                "finite": bool(loss.finite),
                "collectives": group._get_sequence_number_for_group() - before,
            }
        )
    return facts


def whole_rows(case: Case) -> list[Tensor]:
    """The rows of every sub-centre as the head of a run begins with them."""
    from manyfaces.models.head.partial_fc import PartialFC

    head = PartialFC(case.head, case.num_classes, D, seed=SEED, weight_decay=0, device=CPU)
    return [rows.tensors()["rows"].clone() for rows in head.sub_centers]


def chosen(case: Case, labels_B: Tensor) -> list[int]:
    """The classes that the step scores."""
    if case.head.sample_rate == 1:
        return list(range(case.num_classes))
    blocks = sampling.blocks(case.num_classes, case.head.sample_rate, SEED, 0)
    drawn = {i for b in blocks for i in range(b * 128, min((b + 1) * 128, case.num_classes))}
    return sorted(drawn | set(labels_B[labels_B >= 0].tolist()))


@pytest.fixture(scope="module", params=[1, 2, 3])
def ranks(request: pytest.FixtureRequest) -> list[list[dict[str, Any]]]:
    return run_ranks(request.param, steps_of_a_rank)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_loss_and_gradients_are_those_of_the_definition(
    ranks: list[list[dict[str, Any]]], number: int
) -> None:
    case, facts = CASES[number], [rank[number] for rank in ranks]
    settings, (embeddings_BD, labels_B) = case.settings, batch(case)
    first_CD, *others = whole_rows(case)
    sub_centers = [near(first_CD, case), *others]
    ids = chosen(case, labels_B)
    assert len(ids) == case.num_classes or 1 < len(ids) < case.num_classes

    # The quality's loss: one sample and one class at a time.
    weight_1D, bias_1 = (each.double().requires_grad_() for each in score_head())
    asked_BD = embeddings_BD.double().requires_grad_()
    losses, ratios = [], []
    for i in (labels_B != -1).nonzero()[:, 0].tolist():
        cosines = {
            c: max(
                float(torch.cosine_similarity(embeddings_BD[i].double(), rows[c].double(), 0))
                for rows in sub_centers
            )
            for c in ids
        }
        ccs = cosines.pop(int(labels_B[i]))
        if not cosines:
            continue
        nnccs = max(cosines.values())
        if settings.formula == "paper":
            ratios.append(ccs / (nnccs + 1 + 1e-9))
        else:
            ratios.append(ccs / max(nnccs, -1e-12))
        off = ((weight_1D @ asked_BD[i] + bias_1) - ratios[-1]).abs()
        small = off < settings.beta
        losses.append(torch.where(small, off**2 / (2 * settings.beta), off - settings.beta / 2))
    assert np.ptp(ratios) > 0.3 if ratios else case.num_classes == 1
    quality = torch.cat(losses).mean() if losses else 0 * asked_BD.sum() + 0 * bias_1.sum()
    quality = quality * settings.weight * settings.quality_weight
    (quality + 0 * weight_1D.sum()).backward()

    dense = DenseHead(case.head, sub_centers, 0)
    softmax, d_softmax_BD, _ = dense.step(embeddings_BD, labels_B, ids, 0.1, weight=settings.weight)
    d_embeddings_BD = torch.cat([each["d_embeddings"] for each in facts]) / len(facts)
    expected_BD = asked_BD.grad + d_softmax_BD
    error = torch.linalg.norm(d_embeddings_BD - expected_BD)
    assert error <= 2e-5 * torch.linalg.norm(expected_BD) + 1e-12
    for each in facts:
        assert each["value"] == pytest.approx(float(softmax + quality.detach()), rel=5e-6)
        assert each["metrics"] == {
            "loss_margin_softmax": pytest.approx(float(softmax), rel=5e-6, abs=1e-12),
            "loss_quality": pytest.approx(float(quality.detach()), rel=5e-6),
        }
        assert each["value"] == facts[0]["value"]
        assert each["finite"]
        assert each["collectives"] == (COLLECTIVES if len(facts) > 1 else 0)
    for name, leaf in (("weight", weight_1D), ("bias", bias_1)):
        found = sum(each["grads"][f"scores.quality.{name}"] for each in facts) / len(facts)
        np.testing.assert_allclose(found, leaf.grad, rtol=2e-5, atol=1e-7)


def test_what_is_ignored_sends_nothing_not_even_nan() -> None:
    from manyfaces.data.feed.loader import Batch
    from manyfaces.train.objectives.objective import Forward, Moment, Setting

    case = CASES[0]
    embeddings_BD, labels_B = batch(case)
    embeddings_BD[4] = math.nan
    setting = Setting(config_of(case, case.settings), C, (0,), CPU, None, no_encoder)
    made = case.settings.build(setting=setting)
    network, leaf_BD = made.network(nn.Identity()), embeddings_BD.clone().requires_grad_()
    shown = Batch(0, np.arange(B), {"main": leaf_BD}, labels_B)
    loss = made.loss(Forward(network, shown.images), shown, Moment(0, B, 0.1))
    loss.surrogate.backward()
    assert bool(loss.finite)
    assert leaf_BD.grad is not None
    assert bool(leaf_BD.grad[labels_B != -1].isfinite().all())
    assert not leaf_BD.grad[4].any()


def test_beside_triplets_the_embeddings_travel_once() -> None:
    both = Sum(of=(Triplet(weight=2.0), CRFIQA(quality_weight=5.0)), weight=0.5)
    assert both.score_branches() == {"quality": "main"}
    assert both.state_names() == ("head",)
    parts = both.parts()
    assert isinstance(parts[1], CRFIQA)
    assert (parts[1].weight, parts[1].quality_weight) == (0.5, 5.0)
