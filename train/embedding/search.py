"""What `manyfaces search` does: the nearest of many embeddings to images, or to some of
themselves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import file_sha256
from manyfaces.configs.urls import url_of
from manyfaces.data.picture_grid import write_grid
from manyfaces.data.sources.source import Dropped, FileAt
from manyfaces.data.sources.url_at import UrlAt
from manyfaces.train.embedding.reader import Embeddings, Row
from manyfaces.train.embedding.stored_images import StoredImages, tile
from manyfaces.train.embedding.urls import is_image
from manyfaces.train.evaluation.model import Model
from manyfaces.train.evaluation.nearest import InvertedLists, Nearest, exact_search
from manyfaces.train.initial_weights import trained_file

_PROBED = 16
"""A search by inverted lists compares a query with one list in so many."""


@dataclass(frozen=True)
class Query:
    """An image whose nearest are looked for."""

    word: str
    """As the person named it."""
    blob: bytes | None
    """Its encoded bytes; None for one of the embedded images."""
    row: Row | None
    """Its row; None for an image that was given."""


@dataclass(frozen=True)
class Hit:
    """One of the nearest of a query."""

    cosine: float
    row: Row


def read_queries(embeddings: Embeddings, words: Sequence[str]) -> list[Query]:
    """Each word as an image file or URL, or as the key of an embedded image. Raises `UserError` for
    what is neither, and for the key of several images."""
    files = {word: _read(word) for word in words if _is_file(word)}
    found = embeddings.find([word for word in words if word not in files])
    for word, rows in found.items():
        if not rows:
            raise UserError(
                f"{word}: no such image file, and no key in {embeddings.path}; give an image, or "
                "what its column key says"
            )
        if len(rows) > 1:
            if len({row.name for row in rows}) < len(rows):
                remedy = "which holds it twice: embed the images again"
            else:
                remedy = f"give {rows[0].name} or {rows[1].name}"
            raise UserError(f"{word}: is the key of several images in {embeddings.path}; {remedy}")
    return [
        Query(word, files.get(word), None if word in files else found[word][0]) for word in words
    ]


def embed_queries(
    embeddings: Embeddings, queries: Sequence[Query], model: str | None
) -> NDArray[np.float32]:
    """The unit embeddings of the queries, float32 [Q, D]: read, or made by the network that made
    the others. Raises `UserError` where that is not at hand."""
    facts = embeddings.facts
    units_QD = np.empty((len(queries), facts.embedding_dim), np.float32)
    own = [number for number, query in enumerate(queries) if query.row is not None]
    rows = [query.row.number for query in queries if query.row is not None]
    units_QD[own] = embeddings.embeddings(rows)
    given = [number for number, query in enumerate(queries) if query.blob is not None]
    if given:
        network = _open_network(embeddings, model)
        blobs = []
        for query in queries:
            if query.blob is not None:
                _refuse_not_decodable(query)
                blobs.append(query.blob)
        units_QD[given] = network.embed(blobs, mirrored=facts.options.flip)
    return units_QD


def search(
    embeddings: Embeddings,
    queries: Sequence[Query],
    units_QD: NDArray[np.float32],
    top: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    by_lists: bool = False,
) -> list[list[Hit]]:
    """The `top` nearest rows of each query, best first; a row is not among its own. Exact, in one
    pass over the files, or `by_lists`, which holds all embeddings in memory and may miss some.
    `progress` is told how many rows are read, and how many there are."""
    done = 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        progress(done, len(embeddings))

    wanted = top + any(query.row is not None for query in queries)
    if by_lists:
        nearest = _by_lists(embeddings, units_QD, wanted, advance)
    else:
        nearest = exact_search(units_QD, embeddings.blocks(), wanted, advance)
    hits: list[list[Hit]] = []
    for query, scores_K, rows_K in zip(queries, nearest.scores_QK, nearest.rows_QK, strict=True):
        own = -1 if query.row is None else query.row.number
        kept_K = np.flatnonzero((rows_K >= 0) & (rows_K != own))[:top]
        rows = embeddings.rows(rows_K[kept_K].tolist())
        hits.append([Hit(float(c), row) for c, row in zip(scores_K[kept_K], rows, strict=True)])
    return hits


def draw(
    embeddings: Embeddings, queries: Sequence[Query], hits: Sequence[Sequence[Hit]], out: Path
) -> int:
    """Draw each query and its nearest as a row of a picture, with cosine and identity beneath.
    Returns how many images could not be had, whose places are gray."""
    images = StoredImages(embeddings.facts)
    columns = 1 + max(map(len, hits))
    tiles: list[NDArray[np.uint8]] = []
    captions: list[list[str]] = []
    blank = np.full((*embeddings.facts.image_hw, 3), 255, np.uint8)
    for query, of_query in zip(queries, hits, strict=True):
        if query.blob is not None:
            tiles.append(tile(query.blob, embeddings.facts.image_hw))
        elif query.row is not None:
            tiles.append(images.tile(query.row))
        captions.append(["query", Path(query.word).name])
        for hit in of_query:
            tiles.append(images.tile(hit.row))
            captions.append([f"{hit.cosine:.3f}", hit.row.identity or Path(hit.row.key).name])
        missing = columns - 1 - len(of_query)
        tiles += [blank] * missing
        captions += [["", ""]] * missing
    write_grid(np.stack(tiles), columns, out, captions)
    return images.missing


def _by_lists(
    embeddings: Embeddings,
    units_QD: NDArray[np.float32],
    wanted: int,
    advance: Callable[[int], None],
) -> Nearest:
    num_lists = InvertedLists.lists_for(len(embeddings))
    index = InvertedLists(embeddings.facts.embedding_dim, num_lists)
    rows_N = InvertedLists.sample_rows(len(embeddings), num_lists)
    index.train(embeddings.embeddings(rows_N.tolist()))
    for block_ND in embeddings.blocks():
        index.add(block_ND)
        advance(len(block_ND))
    return index.search(units_QD, wanted, -(-num_lists // _PROBED))


def _is_file(word: str) -> bool:
    if (url := url_of(word)) is not None:
        return is_image(url)
    return Path(word).expanduser().is_file()


def _read(word: str) -> bytes:
    url = url_of(word)
    try:
        return (FileAt(str(Path(word).expanduser())) if url is None else UrlAt(url)).read()
    except Dropped as reason:
        raise UserError(f"{word}: {reason}") from reason


def _refuse_not_decodable(query: Query) -> None:
    assert query.blob is not None
    try:
        tile(query.blob, (1, 1))
    except Dropped as reason:
        raise UserError(f"{query.word}: {reason}; give an intact image") from reason


def _open_network(embeddings: Embeddings, model: str | None) -> Model:
    """The network by which the embeddings were made, or another path of it."""
    facts = embeddings.facts
    try:
        file = trained_file(model or facts.model)
    except UserError as error:
        if model is not None:
            raise
        raise UserError(
            f"{embeddings.path}: was made by {facts.model}, which is not there any more; give "
            "--model, or a key in place of an image"
        ) from error
    if file_sha256(file) != facts.weights_sha256:
        raise UserError(
            f"{file}: holds other weights than those that {embeddings.path} was made by (of "
            f"{facts.model}); give the same with --model"
        )
    return Model.open(file)
