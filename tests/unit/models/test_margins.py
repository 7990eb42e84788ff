import math
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_head import target_value
from hypothesis import given
from hypothesis import strategies as st
from indented_code import indented_code
from pytorch_metric_learning import losses
from torch import Tensor

from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.configs.margins.adaface import AdaFace
from manyfaces.configs.margins.arcface import ArcFace
from manyfaces.configs.margins.combined import Combined
from manyfaces.configs.margins.cosface import CosFace
from manyfaces.configs.margins.curricularface import CurricularFace
from manyfaces.configs.margins.custom import CustomMargin
from manyfaces.configs.margins.magface import MagFace
from manyfaces.configs.margins.margin import Margin
from manyfaces.configs.margins.softmax import Softmax
from manyfaces.configs.margins.sphereface import SphereFace
from manyfaces.configs.margins.sphereface2 import SphereFace2
from manyfaces.models import margins
from manyfaces.models.head.partial_fc import PartialFC
from manyfaces.models.margins import margin as margin_module
from manyfaces.models.margins.arcface import ArcFace as ArcFaceMargin
from manyfaces.models.margins.combined import Combined as CombinedMargin
from manyfaces.models.margins.cosface import CosFace as CosFaceMargin

arcface = st.builds(ArcFace, m=st.floats(0, 1.5))
cosface = st.builds(CosFace, m=st.floats(0, 1))
combined = st.builds(
    Combined,
    m1=st.floats(1, 4),
    m2=st.floats(0, 1.5),
    m3=st.floats(0, 1),
)
sphereface = st.builds(SphereFace, m=st.floats(1, 8))
by_cosine = st.one_of(arcface, cosface, combined, sphereface)
CPU = torch.device("cpu")


def build(margin: Margin, scale: float, num_classes: int) -> margins.Margin:
    """As the head makes its margin."""
    made: margins.Margin = margin.build()
    made.begin(scale, num_classes)
    return made


def of(margin: Margin, cosine_B: Tensor, norm_B: Tensor | None = None) -> margins.Target:
    return build(margin, 64.0, 10).target(
        cosine_B, torch.ones_like(cosine_B) if norm_B is None else norm_B
    )


@given(by_cosine, st.lists(st.floats(-1 + 1e-9, 1 - 1e-9), min_size=1))
def test_value_and_derivative_are_those_of_the_definition(
    margin: Margin, cosines: list[float]
) -> None:
    cosine_B = torch.tensor(cosines, dtype=torch.float64, requires_grad=True)
    expected_B = target_value(margin, cosine_B)
    (slope_B,) = torch.autograd.grad(expected_B.sum(), cosine_B)
    target = of(margin, cosine_B.detach())
    torch.testing.assert_close(target.value_B, expected_B.detach(), rtol=0, atol=1e-8)
    # At a joint the two sides differ: there one rounding decides which of them is asked.
    theta_B = torch.acos(cosine_B.detach())
    psi_B = (
        getattr(margin, "m1", 1) * theta_B + getattr(margin, "m2", getattr(margin, "m", 0.0))
    ) / math.pi
    if margin.word() == "sphereface":
        psi_B = margin.m * theta_B / math.pi
    clear = (psi_B - psi_B.round()).abs() > 1e-6
    torch.testing.assert_close(target.slope_B[clear], slope_B[clear], rtol=1e-5, atol=1e-8)


@given(by_cosine)
def test_value_rises_with_the_cosine_and_stays_below_it(margin: Margin) -> None:
    cosine_B = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    target = of(margin, cosine_B)
    assert (target.value_B.diff() >= -1e-11).all()
    assert (target.value_B <= cosine_B + 1e-5).all()
    assert target.slope_B.isfinite().all()
    assert (target.slope_B >= -1e-8).all()


def test_combined_contains_the_others() -> None:
    cosine_B = torch.linspace(
        -0.8, 0.999, 100, dtype=torch.float64
    )  # ArcFace of 0.5 turns linear below cos(pi - 0.5) = -0.88
    one_B = torch.ones_like(cosine_B)
    for one, other in [
        (CombinedMargin(1, 0.5, 0), ArcFaceMargin(0.5)),
        (CombinedMargin(1, 0, 0.4), CosFaceMargin(0.4)),
    ]:
        torch.testing.assert_close(one.target(cosine_B, one_B), other.target(cosine_B, one_B))


ADAFACE = AdaFace()


def test_adaface_of_even_norms_is_cosface_and_of_good_ones_harder() -> None:
    """2204.00964, section 3.3: at the mean norm g_angle is 0 and g_add is m; at quality -1 it is
    ArcFace, at 1 the negative angle."""
    margin = build(ADAFACE, 64.0, 10)
    margin.state = {
        "norm_mean": torch.tensor(20.0).double(),
        "norm_std": torch.tensor(2.0 - 1e-3).double(),
    }
    cosine_B = torch.linspace(-0.9, 0.9, 50, dtype=torch.float64)
    even, poor, good = (
        margin.target(cosine_B, torch.full_like(cosine_B, norm)).value_B
        for norm in (20.0, 0.0, 60.0)
    )
    torch.testing.assert_close(even, cosine_B - 0.4)
    torch.testing.assert_close(
        poor, torch.cos((torch.acos(cosine_B) + 0.4).clamp(max=math.pi - 1e-3))
    )
    torch.testing.assert_close(good, torch.cos((torch.acos(cosine_B) - 0.4).clamp(min=1e-3)) - 0.8)


def test_adaface_statistics_ignore_what_is_ignored() -> None:
    margin = build(ADAFACE, 64.0, 10)
    norms = torch.tensor([10.0, 30.0, 1e9, 20.0], dtype=torch.float64)
    state = margin.observe(None, norms, torch.tensor([True, True, False, True]))
    assert state["norm_mean"].item() == pytest.approx(0.01 * 20 + 0.99 * 20)
    assert state["norm_std"].item() == pytest.approx(0.01 * 10 + 0.99 * 100)
    nothing = margin.observe(None, norms, torch.zeros(4, dtype=torch.bool))
    assert nothing == margin.state


def test_magface_is_arcface_at_each_end_and_pulls_norms_between() -> None:
    margin = MagFace()
    cosine_B = torch.linspace(-0.95, 0.95, 40, dtype=torch.float64)
    for norm, m in ((1.0, 0.45), (10.0, 0.45), (60.0, 0.625), (110.0, 0.8), (500.0, 0.8)):
        target = of(margin, cosine_B, torch.full_like(cosine_B, norm))
        arc = of(ArcFace(m=m), cosine_B)
        torch.testing.assert_close((target.value_B, target.slope_B), (arc.value_B, arc.slope_B))
        assert target.extra_B is not None
        assert target.d_extra_B is not None
        torch.testing.assert_close(
            target.extra_B[0].item(),
            35 * (1 / min(max(norm, 10), 110) + min(max(norm, 10), 110) / 110**2),
        )
        assert (target.d_extra_B[0].item() < 0) == (10 <= norm < 110)


def test_curricularface_moves_hard_classes_only() -> None:
    margin = build(CurricularFace(m=0.5), 64.0, 10)
    margin.state = {"t": torch.tensor(0.3).double()}
    own = torch.tensor([0.8, 0.1], dtype=torch.float64)
    transform = margin.negative_transform(own)
    assert transform is not None
    cosines = torch.linspace(-1, 1, 101).repeat(2, 1)
    threshold = torch.cos(torch.acos(own) + 0.5)[:, None]
    expected = torch.where(cosines > threshold, cosines * (0.3 + cosines), cosines)
    slopes = torch.where(cosines > threshold, 0.3 + 2 * cosines, 1.0)
    torch.testing.assert_close(transform.logits_and_slopes(cosines.clone()), (expected, slopes))
    torch.testing.assert_close(
        transform.for_samples(torch.tensor([1])).logits_and_slopes(cosines[1, :1].clone()),
        (expected[1, :1], slopes[1, :1]),
    )
    torch.testing.assert_close(transform.logits(cosines.clone()), expected)


@pytest.mark.parametrize("num_classes", [2, 100, 1_000_000])
def test_biases_start_where_own_and_other_classes_pull_alike(num_classes: int) -> None:
    """2108.01513: with all cosines 0, the gradient of the bias is 0."""
    margin = build(SphereFace2(), 40.0, num_classes)
    zero = torch.zeros(1, dtype=torch.float64)
    transform = margin.negative_transform(None)
    assert transform is not None
    assert margin.binary is not None
    t = 40 * margin.target(zero, zero).value_B
    n = 40 * transform.logits(zero.clone()).double()
    own, others = (
        margin.binary[0] * torch.sigmoid(-t),
        margin.binary[1] * (num_classes - 1) * torch.sigmoid(n),
    )
    torch.testing.assert_close(own, others, rtol=1e-4, atol=0)


def head_of(margin: Margin, scale: float, C: int, D: int, **settings: Any) -> PartialFC:
    return PartialFC(
        schema.Head(margin=margin, scale=scale, chunk_classes=16, **settings),
        C,
        D,
        seed=1,
        weight_decay=0,
        device=CPU,
    )


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # theirs hands a tensor to scipy
@pytest.mark.parametrize("scale", [16.0, 64.0, 100.0])
@pytest.mark.parametrize("kind", ["arcface", "cosface", "softmax", "sphereface", "sub-centres"])
def test_head_agrees_with_pytorch_metric_learning(kind: str, scale: float) -> None:
    torch.manual_seed(3)
    C, D, B, m = 40, 32, 24, 0.4
    margin: Margin = ArcFace(m=m)
    theirs: Any = losses.ArcFaceLoss(C, D, margin=math.degrees(m), scale=scale)
    if kind == "cosface":
        margin, theirs = (
            CosFace(m=m),
            losses.CosFaceLoss(C, D, margin=m, scale=scale),
        )
    elif kind == "softmax":
        margin, theirs = (
            Softmax(),
            losses.NormalizedSoftmaxLoss(C, D, temperature=1 / scale),
        )
    elif kind == "sphereface":
        margin, theirs = (
            SphereFace(m=3),
            losses.SphereFaceLoss(C, D, margin=3, scale=scale),
        )
    elif kind == "sub-centres":
        theirs = losses.SubCenterArcFaceLoss(
            num_classes=C, embedding_size=D, margin=math.degrees(m), scale=scale, sub_centers=3
        )
    head = head_of(margin, scale, C, D, sub_centers=3 if kind == "sub-centres" else 1)
    labels_B = torch.randint(C, (B,))
    embeddings_BD = torch.randn(B, D)
    embeddings_BD[: B // 2] += (
        400 * head.tensors()["rows"][labels_B[: B // 2]]
    )  # some near their class
    embeddings_BD[-3:] = (
        torch.randn(3, D) * 0.01 - head.tensors()["rows"][labels_B[-3:]]
    )  # and some beyond pi - m
    if kind == "sphereface":  # theirs multiplies by the embedding's norm
        embeddings_BD /= torch.linalg.vector_norm(embeddings_BD, dim=1, keepdim=True)
    theirs = theirs.double()
    sub_centers = [
        head.tensors()[name] for name in ("rows", "rows.1", "rows.2") if name in head.tensors()
    ]
    theirs.W.data = torch.stack(sub_centers, 1).flatten(0, 1).T.double()
    asked_BD = embeddings_BD.double().requires_grad_()
    unit_BD = (
        asked_BD if kind == "sphereface" else torch.nn.functional.normalize(asked_BD)
    )  # which all theirs but this one do
    loss = theirs(unit_BD, labels_B)
    loss.backward()
    assert asked_BD.grad is not None
    step = head.step(embeddings_BD, labels_B, lr=0.1, position=0, batch_size=B)
    torch.testing.assert_close(step.loss, loss.detach(), rtol=5e-6, atol=1e-12)
    expected_BD = asked_BD.grad
    if kind == "sphereface":  # ... and has a gradient along the embedding
        expected_BD = (
            expected_BD - (expected_BD * asked_BD.detach()).sum(1, keepdim=True) * asked_BD.detach()
        )
    found = torch.stack(
        [
            head.tensors()[name.replace("rows", "momentum")]
            for name in ("rows", "rows.1", "rows.2")[: len(sub_centers)]
        ],
        1,
    )
    for mine, other in [
        (step.d_embeddings_ND, expected_BD),
        (found.flatten(0, 1), theirs.W.grad.T),
    ]:
        assert torch.linalg.norm(mine - other) <= 2e-5 * torch.linalg.norm(other)


def test_a_margin_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "halved.py"
    file.write_text(indented_code(margin_module))
    margin = CustomMargin(file=str(file), name="Halved", parameters={"m": 0.2})
    head, plain = (
        head_of(margin, 32.0, 20, 8),
        head_of(Softmax(), 32.0, 20, 8),
    )
    embeddings_BD = torch.randn(6, 8)
    mine, without = (
        each.step(embeddings_BD, torch.arange(6), lr=0.1, position=0, batch_size=6)
        for each in (head, plain)
    )
    assert mine.loss > without.loss
    for name, parameters, message in (
        (
            "Missing",
            {},
            "^head.margin: .*halved.py: Missing is not there; the file defines Halved$",
        ),
        ("Halved", {"n": 1.0}, "^head.margin: .*halved.py: Halved: .* argument 'n'; it takes m$"),
        ("torch", {}, "^head.margin: .*halved.py: torch is no class; the file defines Halved$"),
        (
            "Target",
            {"value_B": 1.0, "slope_B": 1.0},
            r"halved.py: Target\(.*\) is a Target; derive it from manyfaces.models.margins.M",
        ),
    ):
        with pytest.raises(UserError, match=message):
            build(margin.model_copy(update={"name": name, "parameters": parameters}), 32.0, 20)
    nameless = tmp_path / "halved"
    nameless.write_text(file.read_text())
    with pytest.raises(UserError, match=r"ends in \.py"):
        build(margin.model_copy(update={"file": str(nameless)}), 32.0, 20)
    file.write_text(
        file.read_text().replace("        super().__init__()\n", "")
        + "\n\nclass Binary(Halved):\n    binary = 1.0, 1.0\n"
    )
    assert build(margin, 32.0, 20).state == {}
    former = tmp_path / "former.py"
    former.write_text(file.read_text() + "\n    def bend(self, cosine_B):\n        return None\n")
    with pytest.raises(UserError, match=r"former.py:\d+: .*bend is called negative_transform now"):
        build(margin.model_copy(update={"file": str(former)}), 32.0, 20)
    with pytest.raises(
        UserError, match=r"head.sample_rate 0.5 does not go with Binary, .*; set head.sample_rate=1"
    ):
        PartialFC(
            schema.Head(margin=margin.model_copy(update={"name": "Binary"}), sample_rate=0.5),
            20,
            8,
            seed=0,
            weight_decay=0,
            device=CPU,
        )
    for text, message in (
        ("\nclass Halved(:", ":2: SyntaxError: invalid syntax"),
        ("import torch\n1 / 0", ":2: ZeroDivisionError: division by zero"),
        ("class Halved:\n    def __init__(self, m):\n        m.x", ":3: AttributeError: "),
    ):
        file.write_text(text)
        with pytest.raises(UserError) as caught:
            build(margin, 32.0, 20)
        assert str(caught.value).startswith(f"head.margin: {file}{message}")
    with pytest.raises(UserError, match=r"^head.margin: .*other\.py: no such file"):
        build(margin.model_copy(update={"file": str(tmp_path / "other.py")}), 32.0, 20)
