"""A triplet loss in the head, alone and beside a margin, on 1 to 3 real ranks against every triplet
looked at one by one."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from dense_head import DenseHead, triplets_one_by_one
from launcher import run_ranks
from torch import Tensor

from manyfaces.configs import schema
from manyfaces.models.head import collectives
from manyfaces.models.head.partial_fc import PartialFC

CPU = torch.device("cpu")
C, D, B = 40, 12, 17
ALONE, ARCFACE = schema.NoMargin(kind="none"), schema.ArcFaceMargin(kind="arcface")
HEADS = [
    schema.Head(margin=margin, triplet=schema.Triplet(mining=mining, weight=weight))  # type: ignore[arg-type]
    for margin in (ALONE, ARCFACE)
    for mining, weight in (("batch_hard", 1.0), ("semi_hard", 20.0))
]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    labels_B = torch.arange(B) // 3
    labels_B[4] = -1
    embeddings_BD = torch.randn(B, D, generator=generator) * torch.rand(B, 1, generator=generator)
    embeddings_BD[4] = float("nan")
    return embeddings_BD, labels_B


def steps_of_a_rank() -> list[dict[str, Any]]:
    facts, (embeddings_BD, labels_B) = [], batch()
    for config in HEADS:
        head = PartialFC(config, C, D, seed=2, weight_decay=0, device=CPU, group=dist.group.WORLD)
        lo, hi = collectives.share(B, head.rank, head.world_size)
        rows_CD = head.tensors()["rows"].clone()
        before = head.ranks.group._get_sequence_number_for_group() if head.ranks.group else 0
        step = head.step(embeddings_BD[lo:hi], labels_B[lo:hi], lr=0.1, position=0, batch_size=B)
        collectives_made = head.ranks.group._get_sequence_number_for_group() - before if head.ranks.group else 0
        facts.append({
            "loss": step.loss.item(), "d_embeddings": step.d_embeddings_ND / head.world_size, "rows": rows_CD,
            "momentum": head.tensors()["momentum"].clone(), "collectives": collectives_made, "one_owner": step.one_owner.item(),
        })
    return facts


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_loss_and_gradients(world_size: int) -> None:
    ranks = run_ranks(world_size, steps_of_a_rank)
    embeddings_BD, labels_B = batch()
    for number, config in enumerate(HEADS):
        mine = {key: torch.cat([facts[number][key] for facts in ranks]) for key in ("d_embeddings", "rows", "momentum")}
        asked_BD = embeddings_BD.nan_to_num(1.0).double().requires_grad_()
        assert config.triplet is not None
        loss, d_unit_BD = triplets_one_by_one(F.normalize(asked_BD.detach()), labels_B, config.triplet)
        F.normalize(asked_BD).backward(d_unit_BD)
        assert asked_BD.grad is not None
        d_embeddings_BD = asked_BD.grad
        if config.margin != ALONE:
            dense = DenseHead(config, mine["rows"], 0)
            more, d_more_BD, d_rows_CD = dense.step(embeddings_BD.nan_to_num(1.0), labels_B, list(range(C)), 0.1)
            loss, d_embeddings_BD = loss + more, d_embeddings_BD + d_more_BD
            assert torch.linalg.norm(mine["momentum"] - d_rows_CD) <= 2e-5 * torch.linalg.norm(d_rows_CD)
        else:
            assert mine["rows"].shape == (C, 1)
            assert not mine["momentum"].any()
        for facts in ranks:
            assert abs(facts[number]["loss"] - loss.item()) <= 5e-6 * loss.item()
            assert facts[number]["collectives"] == 4 * (world_size > 1)
            assert facts[number]["one_owner"]
        assert torch.linalg.norm(mine["d_embeddings"] - d_embeddings_BD) <= 2e-5 * torch.linalg.norm(d_embeddings_BD)
