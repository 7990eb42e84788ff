"""The head as plain as it can be, to compare with: float64, all classes in one place, autograd,
torch's SGD with a parameter a row.

Each margin is written out as its paper has it, over the whole matrix of cosines.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from manyfaces.configs import schema
from manyfaces.configs.margins.adaface import AdaFace
from manyfaces.configs.margins.arcface import ArcFace
from manyfaces.configs.margins.combined import Combined
from manyfaces.configs.margins.cosface import CosFace
from manyfaces.configs.margins.curricularface import CurricularFace
from manyfaces.configs.margins.magface import MagFace
from manyfaces.configs.margins.margin import Margin
from manyfaces.configs.margins.softmax import Softmax
from manyfaces.configs.margins.sphereface import SphereFace
from manyfaces.configs.margins.sphereface2 import SphereFace2
from manyfaces.configs.margins.uniface import UniFace
from manyfaces.configs.objectives.triplet import Triplet


def additive_angle(theta: Tensor, m: Tensor | float) -> Tensor:
    """cos(theta + m) with the usual tail beyond pi."""
    return torch.where(
        theta + m <= math.pi,
        torch.cos(theta + m),
        torch.cos(theta) - m * torch.sin(torch.as_tensor(m, dtype=torch.float64)),
    )


def target_value(margin: Margin, cosine: Tensor) -> Tensor:
    """The margin by its definition, for autograd to differentiate, where it needs nothing but the
    cosine."""
    theta = torch.acos(cosine)
    match margin:
        case Softmax():
            return cosine
        case ArcFace(m=m, gradient="straight_through"):
            return cosine + (torch.cos(theta + m) - cosine).detach()
        case ArcFace(m=m) | CurricularFace(m=m):
            return additive_angle(theta, m)
        case CosFace(m=m):
            return cosine - m
        case Combined(m1=m1, m2=m2, m3=m3):
            beyond = cosine - math.cos((math.pi - m2) / m1) - 1
            return torch.where(m1 * theta + m2 <= math.pi, torch.cos(m1 * theta + m2), beyond) - m3
        case SphereFace(m=m):  # psi of 1704.08063, equation 7
            k = torch.floor(m * theta.detach() / math.pi)
            return (-1) ** k * torch.cos(m * theta) - 2 * k
    raise NotImplementedError(margin.kind)


class DenseHead:
    def __init__(
        self, config: schema.Head, sub_centers: Tensor | list[Tensor], weight_decay: float
    ) -> None:
        """`sub_centers` are the rows [C, D] of each sub-centre; of the row-wise optimiser, which by
        its definition is SGD without momentum, length x unit row."""
        self.config = config
        momentum, self.stride = config.rows.momentum, 1.0
        if config.rows.optimizer == "rowwise":
            momentum, self.stride = 0.0, 1 / (1 - momentum)
        sub_centers = [sub_centers] if isinstance(sub_centers, Tensor) else sub_centers
        self.sub_centers = [
            [torch.nn.Parameter(row.double().clone()) for row in rows_CD] for rows_CD in sub_centers
        ]
        self.rows = [row for rows in self.sub_centers for row in rows]
        self.optimizer = torch.optim.SGD(
            self.rows, lr=1.0, momentum=momentum, weight_decay=weight_decay
        )
        self.numbers: dict[str, float] = {}
        self.bias = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        C, s = len(sub_centers[0]), config.scale
        match config.margin:
            case AdaFace():
                self.numbers = {"norm_mean": 20.0, "norm_std": 100.0}
            case CurricularFace():
                self.numbers = {"t": 0.0}
            case UniFace():
                self.bias.data.fill_(-math.log(10 * C))
            case SphereFace2(m=m, balance=balance, t=power):
                # Where the gradients of own and other classes, all at right angles, cancel (arXiv
                # 2108.01513): solved by bisection.
                own, other = (s * (2 * 0.5**power - 1 + shift) for shift in (-m, m))
                low, high = -200.0, 200.0
                for _ in range(200):
                    b = (low + high) / 2
                    pull = balance / (1 + math.exp(min(own + b, 700))) - (1 - balance) * max(
                        C - 1, 1
                    ) / (1 + math.exp(min(-other - b, 700)))
                    low, high = (b, high) if pull > 0 else (low, b)
                self.bias.data.fill_(b)
        self.bias_optimizer = torch.optim.SGD([self.bias], lr=1.0, momentum=config.rows.momentum)

    def losses(self, cosines_Bn: Tensor, own_Bn: Tensor, norm_B: Tensor) -> Tensor:
        """Losses [B] of samples that count, whose own columns are marked."""
        margin, s = self.config.margin, self.config.scale
        cosine_B = cosines_Bn[own_Bn]
        theta_B, others_Bn, extra_B = torch.acos(cosine_B), cosines_Bn, torch.zeros_like(cosine_B)
        if isinstance(margin, AdaFace):  # arXiv 2204.00964: quality, angular and additive margin
            norms = norm_B.detach().clamp(0.001, 100)
            new = {
                "norm_mean": norms.mean().item(),
                "norm_std": norms.std().item() if len(norms) > 1 else math.nan,
            }
            for name, value in new.items():
                if not math.isnan(value):
                    self.numbers[name] += margin.momentum * (value - self.numbers[name])
            q_B = (
                (norms - self.numbers["norm_mean"]) / (self.numbers["norm_std"] + 1e-3) * margin.h
            ).clamp(-1, 1)
            value_B = torch.cos((theta_B - margin.m * q_B).clamp(1e-3, math.pi - 1e-3)) - (
                margin.m + margin.m * q_B
            )
        elif isinstance(margin, MagFace):  # arXiv 2103.06627
            a_B = norm_B.clamp(margin.low, margin.high)
            m_B = (margin.high_m - margin.low_m) / (margin.high - margin.low) * (
                a_B - margin.low
            ) + margin.low_m
            value_B = additive_angle(theta_B, m_B)
            extra_B = margin.regulariser * (1 / a_B + a_B / margin.high**2)
        elif isinstance(margin, SphereFace2):  # arXiv 2108.01513, equation 5
            g_Bn = 2 * ((cosines_Bn + 1) / 2) ** margin.t - 1
            positive_B = F.softplus(-(s * (g_Bn[own_Bn] - margin.m) + self.bias), threshold=1e9)
            negative_Bn = F.softplus(
                s * (self._filtered(cosines_Bn, g_Bn + margin.m + self.bias / s)), threshold=1e9
            )
            negative_B = negative_Bn.masked_fill(own_Bn, 0).sum(1)
            return (
                margin.weight
                / s
                * (margin.balance * positive_B + (1 - margin.balance) * negative_B)
            )
        elif isinstance(margin, UniFace):  # Zhou et al., ICCV 2023
            positive_B = F.softplus(-(s * (cosine_B - margin.m) + self.bias), threshold=1e9)
            negative_Bn = F.softplus(
                s * self._filtered(cosines_Bn, cosines_Bn + self.bias / s), threshold=1e9
            )
            return positive_B + margin.balance * negative_Bn.masked_fill(own_Bn, 0).sum(1)
        else:
            value_B = target_value(margin, cosine_B)
        if isinstance(margin, CurricularFace):  # arXiv 2004.00288, its N(t, cos) and moving average
            t = self.numbers["t"] = (
                margin.momentum * cosine_B.mean().item() + (1 - margin.momentum) * self.numbers["t"]
            )
            hard_Bn = cosines_Bn > torch.cos(theta_B + margin.m).detach()[:, None]
            others_Bn = torch.where(hard_Bn, cosines_Bn * (t + cosines_Bn), cosines_Bn)
        others_Bn = self._filtered(cosines_Bn, others_Bn)
        lse_B = torch.logsumexp((s * others_Bn).masked_fill(own_Bn, -math.inf), 1)
        # A softmax over the target alone has loss 0.
        margin_B = torch.where(lse_B == -math.inf, 0, lse_B) - s * value_B
        losses_B = torch.logaddexp(margin_B, torch.zeros_like(margin_B))
        return torch.where(lse_B == -math.inf, 0, losses_B) + extra_B

    def _filtered(self, cosines_Bn: Tensor, logits_Bn: Tensor) -> Tensor:
        return (
            logits_Bn
            if self.config.filter_above is None
            else logits_Bn.masked_fill(cosines_Bn > self.config.filter_above, -math.inf)
        )

    def cosines(self, embeddings_BD: Tensor, ids: list[int]) -> Tensor:
        """With the nearest sub-centre of the classes `ids` [B, n]."""
        unit_BD = F.normalize(embeddings_BD)
        return torch.stack(
            [
                unit_BD @ F.normalize(torch.stack([rows[i] for i in ids])).T
                for rows in self.sub_centers
            ]
        ).amax(0)

    def step(
        self,
        embeddings_BD: Tensor,
        labels_B: Tensor,
        ids: list[int],
        lr: float,
        weights_B: Tensor | None = None,
        weight: float = 1.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss over the classes `ids`, its gradients at the embeddings and at all rows [K C, D]
        (zero for rows not in `ids`); rows are stepped unless no sample counts."""
        weights_B = torch.ones(len(labels_B)) if weights_B is None else weights_B
        weights_B = weights_B.double() * weight
        embeddings_BD = embeddings_BD.double().requires_grad_()
        loss = embeddings_BD.sum() * 0 + self.bias * 0
        num_valid = int((labels_B != -1).sum())
        counted_B = (labels_B != -1) & (weights_B != 0)
        if ids and counted_B.any():
            counted_BD = embeddings_BD[counted_B]
            own_Bn = labels_B[counted_B][:, None] == torch.tensor(ids)
            norm_B = torch.linalg.vector_norm(counted_BD, dim=1)
            losses_B = self.losses(self.cosines(counted_BD, ids), own_Bn, norm_B)
            loss = loss + (weights_B[counted_B] * losses_B).sum() / num_valid
        self.optimizer.zero_grad(set_to_none=True)
        self.bias_optimizer.zero_grad()
        torch.autograd.backward(loss)
        if counted_B.any():
            for rows in self.sub_centers:
                for i in ids:
                    if rows[i].grad is None:
                        rows[i].grad = torch.zeros_like(rows[i])
        d_rows_CD = torch.stack(
            [torch.zeros_like(row) if row.grad is None else row.grad for row in self.rows]
        )
        for optimizer, stride in ((self.optimizer, self.stride), (self.bias_optimizer, 1)):
            optimizer.param_groups[0]["lr"] = lr * self.config.rows.lr_scale * stride
            if counted_B.any():
                optimizer.step()
        assert embeddings_BD.grad is not None
        return loss.detach(), embeddings_BD.grad, d_rows_CD

    def details(
        self, embeddings_BD: Tensor, labels_B: Tensor, ids: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Cosines with the own class and with the nearest other one of `ids`, -inf without any; NaN
        for ignored samples."""
        if not ids:
            return torch.full((2, len(labels_B)), math.nan).double().unbind()
        cosines_Bn = self.cosines(embeddings_BD.double(), ids).detach()
        own_Bn = labels_B[:, None] == torch.tensor(ids)
        target_B = torch.where(own_Bn, cosines_Bn, 0).sum(1)
        nearest_B = cosines_Bn.masked_fill(own_Bn, -math.inf).amax(1)
        ignored_B = labels_B == -1
        return target_B.masked_fill(ignored_B, math.nan), nearest_B.masked_fill(ignored_B, math.nan)

    def matrix(self) -> Tensor:
        """All rows [K C, D], sub-centre by sub-centre."""
        return torch.stack([row.detach() for row in self.rows])


def triplets_one_by_one(
    unit_BD: Tensor, labels_B: Tensor, config: Triplet
) -> tuple[Tensor, Tensor]:
    """The triplet loss over a batch, and its gradient at the unit embeddings."""
    unit_BD = unit_BD.double().requires_grad_()
    places = [i for i in range(len(labels_B)) if labels_B[i] != -1]

    def distance(i: int, j: int) -> Tensor:
        found = torch.linalg.vector_norm(unit_BD[i] - unit_BD[j])
        return found.square() if config.distance == "squared" else found

    costs = []
    for a in places:
        positives = [distance(a, p) for p in places if p != a and labels_B[p] == labels_B[a]]
        negatives = [distance(a, n) for n in places if labels_B[n] != labels_B[a]]
        if not positives or not negatives:
            continue
        if config.mining == "batch_hard":
            pairs = [(max(positives), min(negatives))]
        else:
            pairs = [
                (p, min((n for n in negatives if n > p), default=max(negatives))) for p in positives
            ]
        costs += [
            F.softplus(p - n) if config.margin == "soft" else (config.margin + p - n).clamp(min=0)
            for p, n in pairs
        ]
    loss = config.weight * torch.stack(costs).mean() if costs else 0 * unit_BD.sum()
    return loss.detach(), torch.autograd.grad(loss, unit_BD)[0]
