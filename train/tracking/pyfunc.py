"""How MLflow opens a registered model: `mlflow.pyfunc.load_model("models:/NAME/1")`."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfaces.train.evaluation.model import Model


class Embedding:
    """What MLflow calls `predict` of. Shapes: N images of height H and width W, D the embedding."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def predict(self, images_NHWC: Any, params: Any = None) -> NDArray[np.float32]:
        """The unit embeddings [N, D] of images [N, H, W, 3], uint8 RGB. Raises `UserError` for
        others."""
        return self.model.embed(list(np.asarray(images_NHWC)))


def _load_pyfunc(path: str) -> Embedding:
    """Open the model whose weights are in the file `path`. MLflow finds this function by its name.
    Raises `UserError` for a file that holds no model."""
    return Embedding(Model.open(Path(path)))
