"""The head as plain as it can be, to compare with: float64, all classes in one place, autograd, torch's SGD with a parameter a class."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from manyfaces.configs import schema


def target_value(margin: schema.Margin, cosine: Tensor) -> Tensor:
    """The margin by its definition, for autograd to differentiate."""
    theta = torch.acos(cosine)
    match margin:
        case schema.ArcFaceMargin(m=m):
            return torch.where(theta + m <= math.pi, torch.cos(theta + m), cosine - m * math.sin(m))
        case schema.CosFaceMargin(m=m):
            return cosine - m
        case schema.CombinedMargin(m1=m1, m2=m2, m3=m3):
            beyond = cosine - math.cos((math.pi - m2) / m1) - 1
            return torch.where(m1 * theta + m2 <= math.pi, torch.cos(m1 * theta + m2), beyond) - m3


class DenseHead:
    def __init__(self, config: schema.Head, rows_CD: Tensor, weight_decay: float) -> None:
        """Rows of the row-wise optimiser are given and compared as length x unit row: by its definition, SGD without momentum."""
        self.config = config
        momentum, self.stride = config.rows.momentum, 1.0
        if config.rows.optimizer == "rowwise":
            momentum, self.stride = 0.0, 1 / (1 - momentum)
        self.rows = [torch.nn.Parameter(row.double().clone()) for row in rows_CD]
        self.optimizer = torch.optim.SGD(self.rows, lr=1.0, momentum=momentum, weight_decay=weight_decay)

    def step(self, embeddings_BD: Tensor, labels_B: Tensor, ids: list[int], lr: float) -> tuple[Tensor, Tensor, Tensor]:
        """Loss over the classes `ids`, its gradients at the embeddings and at all rows (zero for rows not in `ids`); rows are stepped."""
        embeddings_BD = embeddings_BD.double().requires_grad_()
        cosines_Bn = F.normalize(embeddings_BD) @ F.normalize(torch.stack([self.rows[i] for i in ids])).T if ids else embeddings_BD[:, :0]
        losses = [embeddings_BD.sum() * 0]
        for cosines_n, label in zip(cosines_Bn, labels_B.tolist(), strict=True):
            others = [c for c, i in enumerate(ids) if i != label]
            if label != -1 and others:  # a softmax over the target alone has loss 0
                t = self.config.scale * target_value(self.config.margin, cosines_n[ids.index(label)])
                lse = torch.logsumexp(self.config.scale * cosines_n[others], 0)
                losses.append(torch.logaddexp(lse - t, torch.zeros_like(t)))
        loss = torch.stack(losses).sum() / max(1, int((labels_B != -1).sum()))
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        any_valid = bool((labels_B != -1).any())
        for i in ids if any_valid else []:
            if self.rows[i].grad is None:
                self.rows[i].grad = torch.zeros_like(self.rows[i])
        d_rows_CD = torch.stack([torch.zeros_like(row) if row.grad is None else row.grad for row in self.rows])
        self.optimizer.param_groups[0]["lr"] = lr * self.config.rows.lr_scale * self.stride
        if any_valid:
            self.optimizer.step()
        assert embeddings_BD.grad is not None
        return loss.detach(), embeddings_BD.grad, d_rows_CD

    def matrix(self) -> Tensor:
        return torch.stack([row.detach() for row in self.rows])
