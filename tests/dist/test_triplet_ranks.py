"""Objectives on 1 to 3 real ranks: a triplet loss alone and beside a margin softmax, against every
triplet looked at one by one and a dense softmax."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from dense_head import DenseHead, triplets_one_by_one
from launcher import run_ranks
from torch import Tensor

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.objectives.margin_softmax import MarginSoftmax
from manyfaces.configs.objectives.sum import Sum
from manyfaces.configs.objectives.triplet import Triplet
from manyfaces.configs.orders.pk import PK
from manyfaces.configs.schema import Config, Data, Head, Objective, Train
from manyfaces.configs.split import batch_share

C, D, B = 40, 12, 17
HEAD = Head()
TRIPLETS = [Triplet(), Triplet(mining="semi_hard", weight=20.0)]
SOFTMAX = MarginSoftmax(weight=0.5)
OBJECTIVES: list[Objective] = [
    *TRIPLETS,
    SOFTMAX,
    *(Sum(of=(SOFTMAX, triplet)) for triplet in TRIPLETS),
    Sum(of=(SOFTMAX, Triplet(wire_dtype="bfloat16"))),  # which cannot share the exchange
]
# Two all-gathers and what comes back once, and one sum for each loss. Labels alone are shared by the
# parts of the last one.
COLLECTIVES = [4, 4, 4, 5, 5, 7]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    labels_B = torch.arange(B) // 3
    labels_B[4] = -1
    embeddings_BD = torch.randn(B, D, generator=generator) * torch.rand(B, 1, generator=generator)
    embeddings_BD[4] = float("nan")
    return embeddings_BD, labels_B


def no_encoder(path: str) -> Any:
    raise AssertionError(path)


def steps_of_a_rank() -> list[dict[str, Any]]:
    # Ranks import the objectives, with the data they know of, only where they are needed.
    from manyfaces.data.feed.loader import Batch
    from manyfaces.models.backbones.output import Output
    from manyfaces.train.objectives.objective import Forward, Moment, Setting

    group, facts = dist.group.WORLD, []
    embeddings_BD, labels_B = batch()
    assert group is not None
    world_size = dist.get_world_size()
    lo, hi = batch_share(B, dist.get_rank(), world_size)
    for objective in OBJECTIVES:
        data, train = Data(path="faces", order=PK(images_per_identity=3)), Train(batch_size=18)
        model = MobileFaceNet(embedding_dim=D)
        config = Config(model=model, data=data, train=train, head=HEAD, objective=objective)
        setting = Setting(config, C, (0,), torch.device("cpu"), group, open_encoder=no_encoder)
        made = objective.build(setting=setting)
        rows = {name: part.tensors["rows"].clone() for name, part in made.state().items()}
        leaf_ND = embeddings_BD[lo:hi].clone().requires_grad_()
        shown = Batch(0, np.arange(lo, hi), {"main": torch.empty(hi - lo)}, labels_B[lo:hi])
        forward = Forward(lambda _, leaf_ND=leaf_ND: Output({"main": leaf_ND}), shown.images)
        before = group._get_sequence_number_for_group()
        loss = made.loss(forward, shown, Moment(position=0, batch_size=B, lr=0.1))
        loss.surrogate.backward()
        assert leaf_ND.grad is not None
        facts.append(
            {
                "loss": loss.value.item(),
                "d_embeddings": leaf_ND.grad / world_size,
                "rows": rows.get("head", torch.empty(0, D)),
                "rows after": {n: part.tensors["rows"] for n, part in made.state().items()},
                "collectives": group._get_sequence_number_for_group() - before,
                "checks": [bool(is_so) for is_so in loss.checks.values()],
            }
        )
    return facts


@pytest.fixture(scope="module", params=[1, 2, 3])
def ranks(request: pytest.FixtureRequest) -> list[list[dict[str, Any]]]:
    return run_ranks(request.param, steps_of_a_rank)


def test_the_parts_of_a_sum_share_one_exchange(ranks: list[list[dict[str, Any]]]) -> None:
    """As each part alone: the loss and the rows to the bit, and the gradients, which come back as
    one sum, but for its rounding."""
    for rank in ranks:
        told = [facts["collectives"] for facts in rank]
        assert told == (COLLECTIVES if len(ranks) > 1 else [0] * len(OBJECTIVES))
        for both, triplet in ((3, 0), (4, 1)):
            parts = rank[OBJECTIVES.index(SOFTMAX)], rank[triplet]
            assert rank[both]["loss"] == sum(part["loss"] for part in parts)
            assert torch.equal(rank[both]["rows after"]["head"], parts[0]["rows after"]["head"])
            expected = sum(part["d_embeddings"] for part in parts)
            error = torch.linalg.norm(rank[both]["d_embeddings"] - expected)
            assert error <= 2e-7 * torch.linalg.norm(expected)


def test_loss_and_gradients(ranks: list[list[dict[str, Any]]]) -> None:
    embeddings_BD, labels_B = batch()
    for number, objective in enumerate(OBJECTIVES[:-1]):
        if objective == SOFTMAX:
            continue
        d_embeddings_BD = torch.cat([facts[number]["d_embeddings"] for facts in ranks])
        asked_BD = embeddings_BD.nan_to_num(1.0).double().requires_grad_()
        triplet = next(part for part in objective.parts() if isinstance(part, Triplet))
        loss, d_unit_BD = triplets_one_by_one(F.normalize(asked_BD.detach()), labels_B, triplet)
        F.normalize(asked_BD).backward(d_unit_BD)
        expected_BD = asked_BD.grad
        assert expected_BD is not None
        if isinstance(objective, Sum):
            rows_CD = torch.cat([facts[number]["rows"] for facts in ranks])
            more, d_more_BD, _ = DenseHead(HEAD, rows_CD, 0).step(
                embeddings_BD.nan_to_num(1.0), labels_B, list(range(C)), 0.0
            )
            loss, expected_BD = loss + 0.5 * more, expected_BD + 0.5 * d_more_BD
        for facts in ranks:
            assert abs(facts[number]["loss"] - loss.item()) <= 5e-6 * loss.item()
            assert all(facts[number]["checks"])
        found_BD, valid_B = d_embeddings_BD.nan_to_num(0.0), labels_B != -1
        assert not found_BD[~valid_B].any()
        error = torch.linalg.norm(found_BD - expected_BD)
        assert error <= 2e-5 * torch.linalg.norm(expected_BD)
