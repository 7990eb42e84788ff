"""`manyfaces search`: the nearest of what `manyfaces embed` wrote, in words and as a picture."""

import io
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from tiny_encoder import PX, tiny_encoder

from manyfaces.data.dataset.dataset import open_dataset
from manyfaces.data.picture_grid import LINE_PX
from manyfaces.data.store.samples import Stores
from manyfaces.train.cli import embed as embed_verbs
from manyfaces.train.cli.main import main
from manyfaces.train.embedding.facts import read_facts
from manyfaces.train.embedding.reader import Embeddings
from manyfaces.train.embedding.search import Hit, embed_queries, read_queries, search


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def planted(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of one image of the dataset in another format, and of one in two
    places."""
    folder = tmp_path_factory.mktemp("planted") / "others"
    blobs = Stores(open_dataset(dataset_path)).read(np.arange(70, 72))
    for name in ("a/twin", "b/twin"):
        (folder / name).parent.mkdir(parents=True)
    pixels = cv2.imdecode(blobs[0], cv2.IMREAD_COLOR)
    cv2.imwrite(str(folder / "a" / "twin.png"), pixels)
    (folder / "b" / "twin.jpg").write_bytes(bytes(blobs[1]))
    return folder


@pytest.fixture(scope="module")
def made(
    network: Path, dataset_path: Path, planted: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Embeddings of the dataset and the planted images, in parts of 32 rows."""
    out = tmp_path_factory.mktemp("embeddings") / "made"
    words = ["embed", network, dataset_path, planted, "--out", out, "--part-images", 32]
    assert main([*map(str, words)]) == 0
    return out


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the verb prints, at a width that cuts nothing off."""
    out = io.StringIO()
    monkeypatch.setattr(embed_verbs, "console", Console(file=out, width=400))
    return out


def told(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return captured.out + captured.err


def find(made: Path, words: list[str], top: int, *, by_lists: bool = False) -> list[list[Hit]]:
    embeddings = Embeddings(made)
    queries = read_queries(embeddings, words)
    units_QD = embed_queries(embeddings, queries, None)
    return search(embeddings, queries, units_QD, top, by_lists=by_lists)


def test_the_planted_duplicate_comes_first(
    made: Path, planted: Path, dataset_path: Path, tmp_path: Path, shown: io.StringIO
) -> None:
    elsewhere = tmp_path / "query.jpg"
    shutil.copy(planted / "b" / "twin.jpg", elsewhere)
    grid = tmp_path / "grid.png"
    words = ["search", made, elsewhere, "a/twin.png", "--top", 3, "--out", grid]
    assert main([*map(str, words)]) == 0
    picture = cv2.imread(str(grid))
    assert picture.shape == (2 * (PX + 2 * LINE_PX), 4 * PX, 3)
    part = open_dataset(dataset_path).part
    (first_key,) = part.keys(np.array([71]))
    tables = shown.getvalue().split("cosine")[1:]
    assert "1.0000" in tables[0]
    assert first_key in tables[0]
    assert "b/twin.jpg" in tables[0]
    # The image itself is not among its own nearest.
    assert part.keys(np.array([70]))[0] in tables[1]
    assert "a/twin.png" not in tables[1]
    # The first tile beneath the query shows the same image.
    first, second = picture[:PX, :PX].astype(int), picture[:PX, PX : 2 * PX].astype(int)
    assert np.abs(first - second).max() <= 2


def test_the_order_is_that_of_all_cosines(made: Path) -> None:
    table = pa.concat_tables(pq.read_table(file) for file in sorted(made.glob("part-*.parquet")))
    flat = np.array(table["embedding"].to_pylist(), np.float64)
    units_ND = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    keys = table["key"].to_pylist()
    (hits,) = find(made, [keys[40]], 7)
    cosines_N = units_ND @ units_ND[40]
    cosines_N[40] = -2
    assert [hit.row.number for hit in hits] == np.argsort(-cosines_N)[:7].tolist()
    np.testing.assert_allclose([hit.cosine for hit in hits], np.sort(cosines_N)[:-8:-1], atol=1e-6)
    assert {hit.row.number for hit in find(made, keys[:1], 500)[0]} == set(range(1, len(keys)))


def test_inverted_lists_find_what_is_in_the_list_of_the_query(made: Path, planted: Path) -> None:
    twin = str(planted / "b" / "twin.jpg")
    (hits,) = find(made, [twin], 2, by_lists=True)
    (exact,) = find(made, [twin], 2)
    assert {hit.row.number for hit in hits} == {hit.row.number for hit in exact}
    assert [hit.cosine for hit in hits] == pytest.approx([1, 1], abs=1e-6)


def test_images_that_are_gone_are_gray(
    network: Path, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "copy", tmp_path / "e.parquet"
    shutil.copytree(planted, folder)
    assert main([*map(str, ["embed", network, folder, "--out", out])]) == 0
    (folder / "b" / "twin.jpg").unlink()
    grid = tmp_path / "grid.png"
    assert main(["search", str(out), "a/twin.png", "--out", str(grid)]) == 0
    assert "1 images are not where they were" in told(capsys)
    assert (cv2.imread(str(grid))[:PX, PX : 2 * PX] == 200).all()


def test_what_cannot_be_searched_is_told(
    made: Path,
    network: Path,
    planted: Path,
    dataset_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cut = tmp_path / "cut.jpg"
    cut.write_bytes((planted / "b" / "twin.jpg").read_bytes()[:900])
    other = tiny_encoder(tmp_path, seed=1)
    nothing = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}), nothing)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes((made / "part-00000.parquet").read_bytes()[:-30])
    image = planted / "b" / "twin.jpg"
    for words, reason in (
        ([tmp_path / "nowhere", image], "nowhere: no such file or folder"),
        ([planted, image], "holds no embeddings; give what `manyfaces embed` wrote"),
        ([nothing, image], "no embeddings of `manyfaces embed` are in it"),
        ([broken, image], "broken.parquet: not a whole parquet file"),
        ([made, "nobody"], "nobody: no such image file, and no key in"),
        ([made, cut], "cut.jpg: a JPEG that is cut off; give an intact image"),
        ([made, image, "--model", other], "holds other weights than those that"),
        ([made, image, "--model", planted], "no trained network there"),
        ([made, image, "--out", tmp_path / "grid.gif"], "give a name that ends in .png or .jpg"),
    ):
        assert main([*map(str, ["search", *words])]) == 2
        assert reason in told(capsys)


def test_parts_that_are_missing_or_of_another_embedding_are_told(
    made: Path, network: Path, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "parts"
    shutil.copytree(made, folder)
    (folder / "part-00001.parquet").unlink()
    assert main(["search", str(folder), "a/twin.png"]) == 2
    assert "1 of its 4 parts are missing" in told(capsys)
    table = pq.read_table(folder / "part-00000.parquet")
    facts = read_facts(table.schema, "there").model_copy(update={"embedding_dim": 4})
    narrow = pa.FixedSizeListArray.from_arrays(
        pa.array(np.zeros(4 * len(table), np.float32)), type=facts.columns().field("embedding").type
    )
    columns = [*table.drop_columns(["embedding"]).columns, narrow]
    pq.write_table(pa.table(columns, facts.columns()), folder / "part-00001.parquet")
    assert main(["search", str(folder), "a/twin.png"]) == 2
    assert "holds embeddings of 4 numbers by" in told(capsys)


def test_a_key_of_several_images_is_asked_about(
    network: Path, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice, out = tmp_path / "twice", tmp_path / "e.parquet"
    shutil.copytree(planted, twice)
    assert main([*map(str, ["embed", network, planted, twice, "--out", out])]) == 0
    assert main(["search", str(out), "a/twin.png"]) == 2
    assert f"give {planted}/a/twin.png or {twice}/a/twin.png" in told(capsys)
    (hits,) = find(out, [f"{twice}/a/twin.png"], 1)
    assert (hits[0].row.source, hits[0].cosine) == (str(planted), pytest.approx(1, abs=1e-6))
    table = pq.read_table(out)
    pq.write_table(pa.concat_tables([table, table]), out)
    (twice / "b" / "twin.jpg").unlink()  # a file that is there is embedded
    assert main(["search", str(out), f"{twice}/b/twin.jpg"]) == 2
    assert "which holds it twice: embed the images again" in told(capsys)
