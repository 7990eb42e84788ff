"""Protocol few_shot: whom an image shows, among people of whom there are a few images each.

Shapes: N images, D the embedding, W people of an episode, S images of each that are enrolled.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs import rng
from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.protocol import Flip
from manyfaces.train.evaluation.nearest import Floats
from manyfaces.train.evaluation.result import Quantity, Result
from manyfaces.train.protocols.labelled import open_labelled
from manyfaces.train.protocols.lists import OverLists
from manyfaces.train.protocols.probe import Ints

_STANDARD_ERRORS = 1.96


class FewShot(OverLists):
    """Nearest mean of a few enrolled images.

    Raises `UserError` for a list that cannot be read, and for one with too few people who have
    images enough.
    """

    quantities: Sequence[Quantity] = (
        Quantity("accuracy", "accuracy (few-shot identification)", "few-shot"),
    )

    def __init__(
        self,
        path: str,
        flip: Flip = "none",
        seed: int = 0,
        ways: int = 20,
        shots: int = 1,
        episodes: int = 1000,
    ) -> None:
        super().__init__([open_labelled(path)], flip)
        self.ways, self.shots, self.episodes, self.seed = ways, shots, episodes, seed
        code_N = self.lists[0].code_N
        order = np.argsort(code_N, kind="stable")
        people = np.split(order, np.flatnonzero(np.diff(code_N[order])) + 1)
        self._people = [rows for rows in people if len(rows) > shots]
        if len(self._people) < ways:
            raise UserError(
                f"{path}: {len(self._people):,} identities have {shots + 1} images or more, and an "
                f"episode needs ways={ways}; lower `ways` or `shots`"
            )

    def drawn(self, episode: int) -> Ints:
        """The images of an episode, [W, S + 1]: those that are enrolled, and the one that is asked
        for."""
        key = rng.key(self.seed, rng.Stream.PROBE_EPISODES, episode)
        chosen = rng.permutation(key, len(self._people))[: self.ways]
        rows = []
        for person in chosen.tolist():
            own = self._people[person]
            rows.append(own[rng.permutation(rng.key(key, person), len(own))[: self.shots + 1]])
        return np.stack(rows)

    def result(self, embeddings_ND: Floats) -> Result:
        self.check_widths(embeddings_ND)
        unit_ND = self.unit_rows(embeddings_ND, 0)
        advance = self.advance(self.episodes)
        accuracy_E: NDArray[np.float64] = np.empty(self.episodes)
        for episode in range(self.episodes):
            drawn_WS = self.drawn(episode)
            means_WD = unit_ND[drawn_WS[:, :-1]].astype(np.float64).mean(1)
            means_WD /= np.maximum(np.linalg.norm(means_WD, axis=1, keepdims=True), 1e-12)
            cosines_WW = unit_ND[drawn_WS[:, -1]] @ means_WD.T
            accuracy_E[episode] = (cosines_WW.argmax(1) == np.arange(self.ways)).mean()
            advance(1)
        mean = float(accuracy_E.mean())
        error = _STANDARD_ERRORS * float(accuracy_E.std(ddof=1)) / np.sqrt(self.episodes)
        return Result(
            name=self.name,
            quantities=self.quantities,
            scalars={"accuracy": mean},
            counts={"episodes": self.episodes, "identities": len(self._people)},
            intervals={"accuracy": (mean - error, mean + error)},
        )
