"""Images of each identity of the dataset, and a map of the embeddings of some."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.load import load_stored
from manyfaces.configs.schema import Config
from manyfaces.configs.urls import url_of
from manyfaces.data.dataset.dataset import Dataset, open_data
from manyfaces.data.dataset.manifest import IDENTITIES
from manyfaces.train.report.drawing import Drawing, Numbers, Row
from manyfaces.train.report.histogram_chart import HistogramChart, draw_histogram
from manyfaces.train.report.run_data import RunData
from manyfaces.train.report.scatter_chart import ScatterChart, draw_scatter

_BINS, _ROOM, _CHUNK = 40, 2, 1 << 22
_MOST_IMAGES, _BATCH = 40, 100


def images_per_identity(run: RunData) -> tuple[Drawing | None, str]:
    """The histogram of the images of each identity, or why there is none. A dataset at a URL is not
    fetched for it."""
    try:
        dataset = _open(run)
    except UserError as error:
        return None, f"Images per identity are not shown: {error}."
    counts_C = _counts(dataset)
    least, largest = int(counts_C.min()), int(counts_C.max())
    first, last = max(least - _ROOM, 0), largest + _ROOM
    width = -(-(last - first + 1) // _BINS)
    edges = np.arange(first, last + width + 1, width) - 0.5
    heights, _ = np.histogram(counts_C, edges)
    middle, mean = float(np.median(counts_C)), counts_C.mean()
    note = (
        f"{len(counts_C):,} identities have {counts_C.sum():,} images, from {least:,} to "
        f"{largest:,} each; the mean is {mean:.1f}, the median {middle:,g}."
    )
    chart = HistogramChart(
        "Images per identity",
        "images of an identity",
        "identities",
        edges.tolist(),
        {"": heights.tolist()},
        {"": 0},
        note=note,
    )
    return draw_histogram(chart), ""


def _open(run: RunData) -> Dataset:
    config = stored_config(run)
    for path in config.data.paths:
        if url_of(path) is not None:
            raise UserError(f"the dataset is at a URL, {path}, and is not fetched for this page")
    return open_data(config.data)


def stored_config(run: RunData) -> Config:
    """The run's configuration as this version reads it. Raises `UserError`."""
    return load_stored(run.config, str(run.folder / "config.yaml"))


def _counts(dataset: Dataset) -> NDArray[np.int64]:
    """Images of each class, int64 [C]."""
    counts = []
    for part in dataset.parts:
        count_C = np.zeros(part.manifest.num_identities, np.int64)
        for start in range(0, part.manifest.num_images, _CHUNK):
            found = np.bincount(part.identity_N[start : start + _CHUNK], minlength=len(count_C))
            count_C += found[: len(count_C)]
        counts.append(count_C)
    return np.concatenate(counts)


@dataclass(frozen=True)
class _Cloud:
    """Embeddings of some identities, [N, D], and the class of each, [N]."""

    unit_ND: NDArray[np.float32]
    labels_N: NDArray[np.int64]


def embedding_map(run: RunData, identities: int, seed: int = 0) -> Drawing:
    """A map of the embeddings of that many identities of the dataset, chosen by the seed among
    those with several images, by the newest checkpoint.

    Places are by t-SNE (van der Maaten and Hinton, 2008) of cosine distances: what is near in the
    embedding is near in the map, but far distances mean nothing. Raises `UserError` where the
    checkpoint or the dataset is not at hand.
    """
    dataset = _open(run)
    counts_C = _counts(dataset)
    several = np.flatnonzero(counts_C >= 3)
    if len(several) < 2:
        raise UserError(f"{dataset.where}: fewer than two identities have three images")
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(several, min(identities, len(several)), replace=False))
    cloud = _embedded(run.given, dataset, chosen)
    places_N2 = _places(cloud, seed)
    names = _names(run.folder, dataset, chosen)
    points = {names[c]: places_N2[cloud.labels_N == c] for c in chosen.tolist()}
    note = (
        f"{len(cloud.labels_N)} images of {len(chosen)} identities of the training set, placed by "
        "t-SNE of their cosine distances: near points are alike, far distances mean nothing. "
        f"Silhouette in the embedding itself: {_silhouette(cloud):.2f} (1 is best)."
    )
    chart = ScatterChart("Map of embeddings", points, _told(cloud, names), note)
    return draw_scatter(chart)


def _embedded(run: str | Path, dataset: Dataset, chosen: NDArray[np.int64]) -> _Cloud:
    from manyfaces.train.evaluation.embed_dataset import LeftOut, embed_dataset
    from manyfaces.train.evaluation.trained import open_trained

    embedder = open_trained(Path(run)).embedder(_BATCH)
    wanted_C = np.zeros(sum(part.manifest.num_identities for part in dataset.parts), np.bool_)
    wanted_C[chosen] = True
    units, labels = [], []
    for batch in embed_dataset(dataset, embedder, LeftOut(), lambda images: None, wanted_C):
        units.append(batch.unit_ND.cpu().numpy())
        labels.append(batch.labels_N)
    if not units:
        raise UserError(f"{dataset.where}: no image of the chosen identities can be decoded")
    unit_ND, labels_N = np.concatenate(units), np.concatenate(labels)
    kept = np.concatenate([np.flatnonzero(labels_N == c)[:_MOST_IMAGES] for c in chosen])
    return _Cloud(unit_ND[kept], labels_N[kept])


def _places(cloud: _Cloud, seed: int) -> NDArray[np.floating]:
    """A place for each embedding, [N, 2]."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, max((len(cloud.unit_ND) - 1) / 3, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the threads that it finds
        made = TSNE(2, perplexity=perplexity, metric="cosine", init="random", random_state=seed)
        places: NDArray[np.floating] = made.fit_transform(cloud.unit_ND)
    return places


def _silhouette(cloud: _Cloud) -> float:
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(cloud.unit_ND, cloud.labels_N, metric="cosine"))


def _told(cloud: _Cloud, names: Mapping[int, str]) -> Numbers:
    """Of each identity the mean cosine within it, and to the other one that is nearest."""
    means = {c: cloud.unit_ND[cloud.labels_N == c].mean(0) for c in names}
    rows = []
    for c, name in names.items():
        unit_ND = cloud.unit_ND[cloud.labels_N == c]
        count = len(unit_ND)
        own = (unit_ND @ unit_ND.T).sum() - count
        within = own / (count * (count - 1)) if count > 1 else float("nan")
        others = {other: float(means[c] @ means[other]) for other in names if other != c}
        nearest = max(others, key=others.__getitem__)
        told = [f"{count}", f"{within:.3f}" if count > 1 else "", f"{others[nearest]:.3f}"]
        rows.append(Row([name, *told, names[nearest]]))
    columns = ["identity", "images", "mean cosine within", "to the nearest other", "which is"]
    return Numbers(columns, rows)


def _names(folder: Path, dataset: Dataset, chosen: NDArray[np.int64]) -> dict[int, str]:
    """The name of each of these classes, its number where it has none or shares it."""
    listed: Sequence[str] = ()
    for place in (folder, *(part.path for part in dataset.parts[:1] if len(dataset.parts) == 1)):
        file = place / IDENTITIES
        if file.is_file():
            listed = file.read_text(encoding="utf-8", errors="replace").splitlines()
            break
    named = {int(c): listed[c] if c < len(listed) and listed[c] else f"{c}" for c in chosen}
    values: list[Any] = list(named.values())
    return {c: name if values.count(name) == 1 else f"{name} ({c})" for c, name in named.items()}
