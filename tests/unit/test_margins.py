import math

import pytest
import torch
from dense_head import target_value
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning import losses

from manyfaces.configs import schema
from manyfaces.models import margins
from manyfaces.models.partial_fc import PartialFC

arcface = st.builds(schema.ArcFaceMargin, kind=st.just("arcface"), m=st.floats(0, 1.5))
cosface = st.builds(schema.CosFaceMargin, kind=st.just("cosface"), m=st.floats(0, 1))
combined = st.builds(schema.CombinedMargin, kind=st.just("combined"), m1=st.floats(1, 4), m2=st.floats(0, 1.5), m3=st.floats(0, 1))
any_margin = st.one_of(arcface, cosface, combined)


@given(any_margin, st.lists(st.floats(-1 + 1e-9, 1 - 1e-9), min_size=1))
def test_value_and_derivative_are_those_of_the_definition(margin: schema.Margin, cosines: list[float]) -> None:
    cosine_B = torch.tensor(cosines, dtype=torch.float64, requires_grad=True)
    expected_B = target_value(margin, cosine_B)
    (slope_B,) = torch.autograd.grad(expected_B.sum(), cosine_B)
    value_B, derivative_B = margins.build(margin)(cosine_B.detach())
    torch.testing.assert_close(value_B, expected_B.detach(), rtol=0, atol=1e-9)
    # At the joint the two sides differ: there one rounding decides which of them is asked.
    theta_B = torch.acos(cosine_B.detach())
    psi_B = getattr(margin, "m1", 1) * theta_B + getattr(margin, "m2", margin.m if margin.kind == "arcface" else 0.0)
    clear = (psi_B - math.pi).abs() > 1e-6
    torch.testing.assert_close(derivative_B[clear], slope_B[clear], rtol=1e-6, atol=1e-9)


@given(any_margin)
def test_value_rises_with_the_cosine_and_stays_below_it(margin: schema.Margin) -> None:
    cosine_B = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    value_B, derivative_B = margins.build(margin)(cosine_B)
    assert (value_B.diff() >= -1e-12).all()
    assert (value_B <= cosine_B + 1e-5).all()
    assert derivative_B.isfinite().all()
    assert (derivative_B >= -1e-12).all()


def test_combined_contains_the_others() -> None:
    cosine_B = torch.linspace(-0.8, 0.999, 100, dtype=torch.float64)  # ArcFace of 0.5 turns linear below cos(pi - 0.5) = -0.88
    for one, other in [(margins.Combined(1, 0.5, 0), margins.ArcFace(0.5)), (margins.Combined(1, 0, 0.4), margins.CosFace(0.4))]:
        torch.testing.assert_close(one(cosine_B), other(cosine_B))


@pytest.mark.parametrize("scale", [16.0, 64.0, 100.0])
@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_head_agrees_with_pytorch_metric_learning(kind: str, scale: float) -> None:
    torch.manual_seed(3)
    C, D, B, m = 40, 32, 24, 0.4
    margin = schema.ArcFaceMargin(kind="arcface", m=m) if kind == "arcface" else schema.CosFaceMargin(kind="cosface", m=m)
    head = PartialFC(schema.Head(margin=margin, scale=scale, chunk_classes=16), C, D, seed=1, weight_decay=0, device=torch.device("cpu"))
    labels_B = torch.randint(C, (B,))
    embeddings_BD = torch.randn(B, D)
    embeddings_BD[: B // 2] += 400 * head.tensors()["rows"][labels_B[: B // 2]]  # some near their class
    embeddings_BD[-3:] = torch.randn(3, D) * 0.01 - head.tensors()["rows"][labels_B[-3:]]  # and some beyond pi - m
    make = losses.ArcFaceLoss if kind == "arcface" else losses.CosFaceLoss
    theirs = make(C, D, margin=math.degrees(m) if kind == "arcface" else m, scale=scale).double()
    theirs.W.data = head.tensors()["rows"].T.double()
    asked_BD = embeddings_BD.double().requires_grad_()
    loss = theirs(asked_BD, labels_B)
    loss.backward()
    step = head.step(embeddings_BD, labels_B, lr=0.1, position=0, batch_size=B)
    torch.testing.assert_close(step.loss, loss.detach(), rtol=5e-6, atol=1e-12)
    for mine, other in [(step.d_embeddings_ND, asked_BD.grad), (head.tensors()["momentum"], theirs.W.grad.T)]:
        assert torch.linalg.norm(mine - other) <= 2e-5 * torch.linalg.norm(other)
