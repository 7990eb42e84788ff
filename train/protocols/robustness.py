"""Protocol robustness: the verdicts on pairs whose first image was changed on purpose."""

from collections.abc import Hashable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.protocol import Flip
from manyfaces.configs.protocols.robustness import Region
from manyfaces.train.evaluation import metrics
from manyfaces.train.evaluation.attacks import Search, attacked, region_mask, start_noise
from manyfaces.train.evaluation.bootstrap import mean_interval
from manyfaces.train.evaluation.decoding import ImageDecoder, not_decodable
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.encoders import open_encoder
from manyfaces.train.evaluation.operating_points import Roc
from manyfaces.train.evaluation.result import Curve, Encoded, Quantity, Result
from manyfaces.train.protocols.pair_sets import PairSet, open_pairs
from manyfaces.train.protocols.protocol import Protocol


class Robustness(Protocol):
    """A set of pairs under attack. Raises `UserError` as `open_pairs` does, and for a set that
    lacks the pairs of the goal or is too small for the FAR."""

    def __init__(
        self,
        path: str,
        root: str | None = None,
        goal: str = "dodging",
        region: Region = "face",
        budgets: Sequence[float] = (1, 2, 4, 8),
        step: float = 2,
        steps: int = 40,
        universal: bool = False,
        group: int = 16,
        most_pairs: int = 512,
        far: float = 1e-2,
        made_with: str | None = None,
        seed: int = 0,
        flip: Flip = "none",
    ) -> None:
        self.path, self.flip, self.far, self.seed = path, flip, far, seed
        self.pairs: PairSet = open_pairs(path, root)
        self.dodging, self.region, self.group, self.made_with = (
            goal == "dodging",
            region,
            group,
            made_with,
        )
        self.searches = [Search(budget, step, steps, universal) for budget in budgets]
        same_N = self.pairs.same_N
        self.attacked_n = np.flatnonzero(same_N == self.dodging)[:most_pairs]
        if not len(self.attacked_n):
            raise UserError(f"{path}: has no pair for the goal {goal}; give a set with both kinds")
        if far * (~same_N).sum() < 1:
            raise UserError(
                f"{path}: {(~same_N).sum()} impostor pairs do not tell a threshold at FAR {far:g}; "
                "raise far, or give more pairs"
            )
        self.quantities = (
            Quantity("success", f"attacks that succeed at {budgets[-1]:g}/255", "success"),
            Quantity("clean", "pairs judged wrongly without an attack", "clean"),
            Quantity("threshold", f"threshold of the cosine at FAR {far:g}", format=".3f"),
        )

    def images(self) -> Sequence[Encoded]:
        return self.pairs.images

    def keys(self) -> Sequence[Hashable]:
        return super().keys() if self.pairs.keys is None else self.pairs.keys

    def image_name(self, index: int) -> str:
        return f"{self.path}: {self.pairs.names[index]}"

    def pieces(self) -> int:
        return -(-len(self.attacked_n) // self.group)

    def probe(self, embedder: Embedder, piece: int) -> NDArray[np.float64]:
        """The cosines of a group's pairs under attack, [pairs, budgets]."""
        pairs = self.attacked_n[piece * self.group : (piece + 1) * self.group].tolist()
        maker = self._maker(embedder)
        first_NCHW = self._pixels([2 * pair for pair in pairs], embedder)
        other_NCHW = self._pixels([2 * pair + 1 for pair in pairs], embedder)
        with torch.no_grad():
            aim_ND = F.normalize(maker.embed_floats(other_NCHW, flip=self.flip))
            mate_ND = F.normalize(embedder.embed_floats(other_NCHW, flip=self.flip))
        sign = -1 if self.dodging else 1

        def gains(images_NCHW: Tensor) -> Tensor:
            found_ND = F.normalize(maker.embed_floats(images_NCHW, flip=self.flip))
            return sign * (found_ND * aim_ND).sum(1)

        hw, device = embedder.image_hw, embedder.device
        noise_NCHW = torch.stack([start_noise(self.seed, pair, hw) for pair in pairs]).to(device)
        mask_HW = region_mask(self.region, hw).to(device)
        cosines = []
        for search in self.searches:
            changed_NCHW = attacked(first_NCHW, gains, mask_HW, noise_NCHW, search)
            with torch.no_grad():
                found_ND = F.normalize(embedder.embed_floats(changed_NCHW, flip=self.flip))
            cosines.append((found_ND.double() * mate_ND.double()).sum(1).cpu().numpy())
        return np.stack(cosines, 1)

    def result(self, embeddings_ND: NDArray[np.float32]) -> Result:
        raise UserError(f"{self.name}: needs the network itself, and not its embeddings alone")

    def probed_result(
        self, embeddings_ND: NDArray[np.float32], probed: Sequence[NDArray[np.float64]]
    ) -> Result:
        scores_N, same_N = metrics.cosine_scores(embeddings_ND), self.pairs.same_N
        point = Roc.of(scores_N, same_N).conservative(self.far)
        threshold = float("inf") if point is None else point.threshold
        cosines = np.column_stack([scores_N[self.attacked_n], np.concatenate(probed)])
        wrong_nB = (cosines >= threshold) != self.dodging
        people = self.pairs.identity_numbers()
        people = None if people is None else people[self.attacked_n]
        rates = wrong_nB.mean(0)
        ends = [mean_interval(wrong_n, people) for wrong_n in wrong_nB.T]
        budgets = [0.0, *(search.budget for search in self.searches)]
        return Result(
            name=self.name,
            quantities=self.quantities,
            scalars={
                "success": float(rates[-1]),
                "clean": float(rates[0]),
                "threshold": threshold,
            },
            counts={"pairs": len(same_N), "attacked": len(self.attacked_n)},
            intervals={"success": ends[-1], "clean": ends[0]},
            curves={
                "success": Curve(
                    f"{self.name}: success by budget",
                    "budget (steps of 8 bits)",
                    "share of pairs judged wrongly",
                    np.array(budgets),
                    rates,
                    low=np.array([low for low, _ in ends]),
                    high=np.array([high for _, high in ends]),
                )
            },
            tables={
                "success_by_budget": {
                    f"{budget:g}/255" if budget else "none": {
                        "success": float(rate),
                        "success_low": low,
                        "success_high": high,
                        "mean_cosine": float(cosine),
                    }
                    for budget, rate, (low, high), cosine in zip(
                        budgets, rates, ends, cosines.mean(0), strict=True
                    )
                }
            },
        )

    def _pixels(self, rows: Sequence[int], embedder: Embedder) -> Tensor:
        """Decoded images, float32 [N, 3, H, W] from 0 to 255 on the device."""
        decoder = ImageDecoder(embedder.image_hw, len(rows), embedder.device)
        decoded = decoder.finish(decoder.start([self.pairs.images[row] for row in rows]))
        if len(decoded.rows_N) < len(rows):
            bad = int(np.setdiff1d(np.arange(len(rows)), decoded.rows_N)[0])
            raise not_decodable(self.image_name(rows[bad]))
        return decoded.images_NHWC.permute(0, 3, 1, 2).float()

    def _maker(self, embedder: Embedder) -> Embedder:
        """What the changes are made with. Raises `UserError` for images of another size."""
        if self.made_with is None:
            return embedder
        maker = self._opened
        if maker.image_hw != embedder.image_hw:
            raise UserError(
                f"{self.made_with}: takes images of {maker.image_hw}, and the network that is "
                f"attacked of {embedder.image_hw}; give one of that size as made_with"
            )
        maker.device = embedder.device
        maker.module.to(embedder.device)
        return maker

    @cached_property
    def _opened(self) -> Embedder:
        return Embedder.of(open_encoder(Path(str(self.made_with)), torch.device("cpu")), self.group)
