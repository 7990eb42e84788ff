"""The head as plain as it can be, to compare with: float64, all classes in one place, autograd,
torch's SGD with a parameter a row.

Each margin is written out as its paper has it, over the whole matrix of cosines.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from manyfaces.configs import schema


def additive_angle(theta: Tensor, m: Tensor | float) -> Tensor:
    """cos(theta + m) with the usual tail beyond pi."""
    return torch.where(
        theta + m <= math.pi,
        torch.cos(theta + m),
        torch.cos(theta) - m * torch.sin(torch.as_tensor(m, dtype=torch.float64)),
    )


def target_value(margin: schema.Margin, cosine: Tensor) -> Tensor:
    """The margin by its definition, for autograd to differentiate, where it needs nothing but the
    cosine."""
    theta = torch.acos(cosine)
    match margin:
        case schema.SoftmaxMargin():
            return cosine
        case schema.ArcFaceMargin(m=m, gradient="straight_through"):
            return cosine + (torch.cos(theta + m) - cosine).detach()
        case schema.ArcFaceMargin(m=m) | schema.CurricularFaceMargin(m=m):
            return additive_angle(theta, m)
        case schema.CosFaceMargin(m=m):
            return cosine - m
        case schema.CombinedMargin(m1=m1, m2=m2, m3=m3):
            beyond = cosine - math.cos((math.pi - m2) / m1) - 1
            return torch.where(m1 * theta + m2 <= math.pi, torch.cos(m1 * theta + m2), beyond) - m3
        case schema.SphereFaceMargin(m=m):  # psi of 1704.08063, equation 7
            k = torch.floor(m * theta.detach() / math.pi)
            return (-1) ** k * torch.cos(m * theta) - 2 * k
    raise NotImplementedError(margin.kind)


class DenseHead:
    def __init__(
        self, config: schema.Head, planes: Tensor | list[Tensor], weight_decay: float
    ) -> None:
        """Rows [C, D] of each sub-centre. Of the row-wise optimiser: length x unit row; by its
        definition, SGD without momentum."""
        self.config = config
        momentum, self.stride = config.rows.momentum, 1.0
        if config.rows.optimizer == "rowwise":
            momentum, self.stride = 0.0, 1 / (1 - momentum)
        planes = [planes] if isinstance(planes, Tensor) else planes
        self.planes = [
            [torch.nn.Parameter(row.double().clone()) for row in rows_CD] for rows_CD in planes
        ]
        self.rows = [row for plane in self.planes for row in plane]
        self.optimizer = torch.optim.SGD(
            self.rows, lr=1.0, momentum=momentum, weight_decay=weight_decay
        )
        self.numbers: dict[str, float] = {}
        self.bias = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        C, s = len(planes[0]), config.scale
        match config.margin:
            case schema.AdaFaceMargin():
                self.numbers = {"norm_mean": 20.0, "norm_std": 100.0}
            case schema.CurricularFaceMargin():
                self.numbers = {"t": 0.0}
            case schema.UniFaceMargin():
                self.bias.data.fill_(-math.log(10 * C))
            case schema.SphereFace2Margin(m=m, balance=balance, t=power):
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
        """Of valid samples, whose own column is marked."""
        margin, s = self.config.margin, self.config.scale
        cosine_B = cosines_Bn[own_Bn]
        theta_B, others_Bn, extra_B = torch.acos(cosine_B), cosines_Bn, torch.zeros_like(cosine_B)
        if isinstance(
            margin, schema.AdaFaceMargin
        ):  # arXiv 2204.00964: quality, angular and additive margin
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
        elif isinstance(margin, schema.MagFaceMargin):  # arXiv 2103.06627
            a_B = norm_B.clamp(margin.low, margin.high)
            m_B = (margin.high_m - margin.low_m) / (margin.high - margin.low) * (
                a_B - margin.low
            ) + margin.low_m
            value_B = additive_angle(theta_B, m_B)
            extra_B = margin.regulariser * (1 / a_B + a_B / margin.high**2)
        elif isinstance(margin, schema.SphereFace2Margin):  # arXiv 2108.01513, equation 5
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
        elif isinstance(margin, schema.UniFaceMargin):  # Zhou et al., ICCV 2023
            positive_B = F.softplus(-(s * (cosine_B - margin.m) + self.bias), threshold=1e9)
            negative_Bn = F.softplus(
                s * self._filtered(cosines_Bn, cosines_Bn + self.bias / s), threshold=1e9
            )
            return positive_B + margin.balance * negative_Bn.masked_fill(own_Bn, 0).sum(1)
        else:
            value_B = target_value(margin, cosine_B)
        if isinstance(
            margin, schema.CurricularFaceMargin
        ):  # arXiv 2004.00288, its N(t, cos) and moving average
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

    def step(
        self, embeddings_BD: Tensor, labels_B: Tensor, ids: list[int], lr: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss over the classes `ids`, its gradients at the embeddings and at all rows [K C, D]
        (zero for rows not in `ids`); rows are stepped."""
        embeddings_BD = embeddings_BD.double().requires_grad_()
        loss = embeddings_BD.sum() * 0 + self.bias * 0
        valid_B = labels_B != -1
        if ids and valid_B.any():
            unit_BD = F.normalize(embeddings_BD[valid_B])
            cosines = torch.stack(
                [
                    unit_BD @ F.normalize(torch.stack([plane[i] for i in ids])).T
                    for plane in self.planes
                ]
            )
            own_Bn = labels_B[valid_B][:, None] == torch.tensor(ids)
            norm_B = torch.linalg.vector_norm(embeddings_BD[valid_B], dim=1)
            loss = loss + self.losses(cosines.max(0).values, own_Bn, norm_B).mean()
        self.optimizer.zero_grad(set_to_none=True)
        self.bias_optimizer.zero_grad()
        torch.autograd.backward(loss)
        if valid_B.any():
            for plane in self.planes:
                for i in ids:
                    if plane[i].grad is None:
                        plane[i].grad = torch.zeros_like(plane[i])
        d_rows_CD = torch.stack(
            [torch.zeros_like(row) if row.grad is None else row.grad for row in self.rows]
        )
        for optimizer, stride in ((self.optimizer, self.stride), (self.bias_optimizer, 1)):
            optimizer.param_groups[0]["lr"] = lr * self.config.rows.lr_scale * stride
            if valid_B.any():
                optimizer.step()
        assert embeddings_BD.grad is not None
        return loss.detach(), embeddings_BD.grad, d_rows_CD

    def matrix(self) -> Tensor:
        """All rows [K C, D], sub-centre by sub-centre."""
        return torch.stack([row.detach() for row in self.rows])


def triplets_one_by_one(
    unit_BD: Tensor, labels_B: Tensor, config: schema.Triplet
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
