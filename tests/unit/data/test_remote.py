"""Datasets at a URL, in the face of every fault of a store: what may pass costs its time, what may
not is one clear line at once."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store_server import Proxy, upload

from manyfaces.configs.orders.shuffle import Shuffle
from manyfaces.configs.schema import Data, UserError
from manyfaces.configs.urls import url_of
from manyfaces.data.dataset.dataset import open_part
from manyfaces.data.dataset.index_url import index_url
from manyfaces.data.dataset.verify import verify
from manyfaces.data.store.remote import Remote
from manyfaces.data.store.samples import Store

SHARD = "shard-000001.tar"


@pytest.fixture
def url(proxy: Proxy, dataset_path: Path) -> str:
    return upload(proxy, dataset_path, "faces", "some/made")


def spec(dataset):
    return next(s for s in dataset.manifest.shards if s.name == SHARD)


def fetch(
    url: str, dataset, to: Path, patience_s: float = 10, told: list[str] | None = None
) -> float:
    """Seconds that the shard took to come, whole."""
    remote = Remote(url, patience_s, (told if told is not None else []).append)
    began = time.monotonic()
    remote.fetch(SHARD, to, spec(dataset).bytes, spec(dataset).sha256)
    took = time.monotonic() - began
    assert to.read_bytes() == dataset.part.shard_path(1).read_bytes()
    return took


@pytest.mark.parametrize("scheme", ["s3", "http"])
@pytest.mark.parametrize(
    "faults",
    [[503], [429, "reset"], ["cut off", 500], ["shorter file", "wrong bytes"], []],
)
def test_what_may_pass_is_tried_again(
    proxy: Proxy, url: str, dataset, tmp_path: Path, faults: list, scheme: str
) -> None:
    if scheme == "http":
        url = f"http://127.0.0.1:{proxy.port}/faces/some/made"
    proxy.faults[SHARD] = list(faults)
    assert fetch(url, dataset, tmp_path / "x") < 4
    assert not proxy.faults[SHARD], "the faults took place"
    assert sum(proxy.gets.values()) == len(faults) + 1


@pytest.mark.parametrize("fault", ["slow", "hangs"])
def test_a_body_that_stalls_is_given_up_and_asked_for_again(
    proxy: Proxy, url: str, dataset, tmp_path: Path, fault: str
) -> None:
    proxy.faults[SHARD] = [fault]
    assert 0.5 < fetch(url, dataset, tmp_path / "x", patience_s=3) < 3


def test_a_store_away_for_three_seconds_costs_three_seconds(
    proxy: Proxy, url: str, dataset, tmp_path: Path
) -> None:
    told: list[str] = []
    with proxy.away(3):
        assert 3 <= fetch(url, dataset, tmp_path / "x", told=told) < 6.5
    assert "Could not connect" in told[0]
    assert "tried 2 times" in told[0]


def test_a_store_that_is_gone_is_one_line_after_the_patience(
    proxy: Proxy, url: str, dataset, tmp_path: Path
) -> None:
    with (
        proxy.away(60),
        pytest.raises(
            UserError,
            match=rf"{SHARD}: tried \d times in \d s .*Could not connect.*same command then resumes",
        ),
    ):
        fetch(url, dataset, tmp_path / "x", patience_s=1.5)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (404, "restore it"),
        (403, "set credentials that may read"),
        (401, "set credentials"),
        (400, "correct the URL"),
    ],
)
@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_what_waiting_does_not_mend_is_told_at_once(
    proxy: Proxy, url: str, dataset, tmp_path: Path, fault: int, message: str, scheme: str
) -> None:
    if scheme == "http":
        url = f"http://127.0.0.1:{proxy.port}/faces/some/made"
    proxy.faults[SHARD] = [fault] * 9
    with pytest.raises(UserError, match=rf"{SHARD}: .*{message}"):
        fetch(url, dataset, tmp_path / "x", patience_s=60)
    assert len(proxy.faults[SHARD]) == 8, "asked once"


def test_bytes_that_stay_wrong_are_what_the_store_holds(
    proxy: Proxy, url: str, dataset, tmp_path: Path
) -> None:
    proxy.faults[SHARD] = ["wrong bytes"] * 9
    with pytest.raises(
        UserError, match=r"other bytes that the manifest says; the store holds it so"
    ):
        fetch(url, dataset, tmp_path / "x", patience_s=60)
    assert len(proxy.faults[SHARD]) == 6


def test_a_full_disk_is_not_the_stores_fault(proxy: Proxy, url: str, dataset) -> None:
    with pytest.raises(
        UserError, match=r"No space left on device; make room or set another data\.cache_dir"
    ):
        fetch(url, dataset, Path("/dev/full"), patience_s=60)


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_open_and_verify(proxy: Proxy, url: str, dataset, tmp_path: Path, scheme: str) -> None:
    if scheme == "http":
        url = f"http://127.0.0.1:{proxy.port}/faces/some/made/"
    proxy.faults = {"manyfaces.json": [500], "index.arrow": ["wrong bytes"]}
    config = Data(cache_dir=str(tmp_path))
    remote = open_part(url, config)
    assert remote.manifest.fingerprint == dataset.manifest.fingerprint
    assert "sizes compared, contents hashed as each shard is fetched" in verify(remote, "auto")
    assert remote.where == url.rstrip("/")
    blobs = Store(remote).read(range(dataset.manifest.num_images))
    assert [b.tobytes() for b in blobs] == [
        b.tobytes() for b in Store(dataset.part).read(range(dataset.manifest.num_images))
    ]
    assert remote.name(0) == dataset.name(0)
    open_part(url, config)
    assert proxy.gets["/faces/some/made/index.arrow"] == 2, (
        "once damaged, once whole, then from the cache"
    )


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_every_shard_that_is_missing_or_of_another_size_is_named(
    proxy: Proxy, dataset_path: Path, tmp_path: Path, scheme: str
) -> None:
    url = upload(proxy, dataset_path, "faces", "damaged")
    proxy.delete("/faces/damaged/shard-000002.tar")
    proxy.put(f"/faces/damaged/{SHARD}", b"x" * 3000)
    if scheme == "http":
        url = f"http://127.0.0.1:{proxy.port}/faces/damaged"
    remote = open_part(url, Data(cache_dir=str(tmp_path)))
    with pytest.raises(
        UserError,
        match=r"shard-000002\.tar: missing; shard-000001\.tar: 3,000 bytes, expected [\d,]+",
    ):
        verify(remote, "auto")


def test_no_dataset_there(proxy: Proxy, url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"s3://faces/elsewhere/manyfaces\.json: .*restore it"):
        open_part("s3://faces/elsewhere", Data(cache_dir=str(tmp_path)))
    proxy.put("/faces/torn/manyfaces.json", b'{"format": 1')
    with pytest.raises(UserError, match=r"s3://faces/torn/manyfaces\.json: .*Invalid JSON"):
        open_part("s3://faces/torn", Data(cache_dir=str(tmp_path)))
    with pytest.raises(UserError, match="Protocol not known"):
        open_part("s4://faces/torn", Data(cache_dir=str(tmp_path)))


def test_a_driver_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(
        sys.modules["fsspec.registry"]._registry, "s3", raising=False
    )  # drivers that were imported before
    with pytest.raises(UserError, match=r"s3:// is not installed: pip install manyfaces\[s3\]"):
        Remote("s3://faces/made", 1)


def test_a_cache_smaller_than_a_window(url: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"data\.cache_gb 0\.0001 is too small for s3://.*a window of 2 shards.*set data\.cache_gb=",
    ):
        open_part(
            url, Data(cache_dir=str(tmp_path), cache_gb=0.0001, order=Shuffle(window_shards=2))
        )


def test_what_is_forgotten_comes_along(
    proxy: Proxy, dataset_path: Path, dataset, tmp_path: Path
) -> None:
    url = upload(proxy, dataset_path, "faces", "forgotten")
    config = Data(cache_dir=str(tmp_path))
    told = json.dumps(
        {"index_sha256": dataset.manifest.index_sha256, "identities": [3], "samples": []}
    )
    proxy.put("/faces/forgotten/forgotten.json", told.encode())
    assert (open_part(url, config).path / "forgotten.json").read_text() == told
    proxy.delete("/faces/forgotten/forgotten.json")
    assert not (open_part(url, config).path / "forgotten.json").exists()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("s3://b/p/", "s3://b/p"),
        (Path("s3://b/p"), "s3://b/p"),
        ("/a/b", None),
        ("data", None),
        (Path("https://h:1/p"), "https://h:1/p"),
    ],
)
def test_what_is_an_url(given: str | Path, meant: str | None) -> None:
    assert url_of(given) == meant


def test_check_plans_from_the_url_without_torch(proxy: Proxy, url: str) -> None:
    code = (
        "import sys; from manyfaces.train.__main__ import main; "
        f"code = main(['check', 'demo', 'data.path={url}']); print('torch' in sys.modules, code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert f"{url}/manyfaces.json" in done.stdout
    assert done.stdout.endswith("False 0\n")


def test_an_empty_file(proxy: Proxy, url: str, tmp_path: Path) -> None:
    proxy.put("/faces/some/made/empty.tar", b"")
    Remote(url, 3).fetch("empty.tar", tmp_path / "x", 0, hashlib.sha256().hexdigest())
    with pytest.raises(UserError, match="0 bytes, not the 10 that the manifest says"):
        Remote(url, 30).fetch("empty.tar", tmp_path / "x", 10, "ab")


def bare(proxy: Proxy, dataset_path: Path, prefix: str) -> str:
    """Shards only, as others keep them."""
    for path in dataset_path.glob("*.tar"):
        proxy.put(f"/faces/{prefix}/{path.name}", path.read_bytes())
    return f"s3://faces/{prefix}"


def test_shards_of_others_are_indexed_where_they_are(
    proxy: Proxy, url: str, dataset_path: Path, dataset, tmp_path: Path
) -> None:
    config = Data(cache_dir=str(tmp_path))
    foreign = bare(proxy, dataset_path, "foreign")
    proxy.faults = {SHARD: ["cut off", 500]}
    manifest, path = index_url(foreign, config=config, processes=1)
    assert path == foreign
    assert (
        manifest.fingerprint
        == open_part(foreign, config).manifest.fingerprint
        == dataset.manifest.fingerprint
    )
    assert not list(tmp_path.rglob("*.tar"))


def test_an_index_beside_nothing_leads_to_its_shards(
    proxy: Proxy, url: str, dataset_path: Path, dataset, tmp_path: Path
) -> None:
    bare(proxy, dataset_path, "foreign2")
    proxy.faults = {"manyfaces.json": [403]}  # nobody may ask for one there
    config, out = Data(cache_dir=str(tmp_path / "cache")), tmp_path / "out"
    _, path = index_url("s3://faces/foreign2", out, config, processes=1)
    assert path == str(out)
    remote = open_part(path, config)
    assert "sizes compared" in verify(remote, "auto")
    assert [b.tobytes() for b in Store(remote).read([0, 77])] == [
        b.tobytes() for b in Store(dataset.part).read([0, 77])
    ]


def test_sizes_that_a_listing_does_not_tell_are_asked_for(
    proxy: Proxy, url: str, dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard of which less comes than the store says is fetched again."""
    bare(proxy, dataset_path, "foreign3")
    told, fetched = Remote.listing, dict[str, int | None]()
    fetch = Remote.fetch

    def without_sizes(remote: Remote, suffix: str) -> dict[str, int | None]:
        return dict.fromkeys(told(remote, suffix))

    def noted(remote: Remote, name: str, to: Path, size: int | None, sha256: str | None) -> None:
        fetched[name] = size
        fetch(remote, name, to, size, sha256)

    monkeypatch.setattr(Remote, "listing", without_sizes)
    monkeypatch.setattr(Remote, "fetch", noted)
    config = Data(cache_dir=str(tmp_path / "cache"))
    index_url("s3://faces/foreign3", tmp_path / "out", config, processes=1)
    assert fetched == {path.name: path.stat().st_size for path in dataset_path.glob("*.tar")}


def test_an_url_without_shards(proxy: Proxy, url: str, tmp_path: Path) -> None:
    proxy.put("/faces/notars/x.txt", b"x")
    with pytest.raises(UserError, match=r"s3://faces/notars: no \.tar files there"):
        index_url("s3://faces/notars", tmp_path)
    with pytest.raises(UserError, match=r"nothing can be written there; give --out FOLDER"):
        index_url(f"http://127.0.0.1:{proxy.port}/faces/foreign")


def test_a_file_is_created_once(url: str) -> None:
    remote = Remote(url, 3)
    assert remote.create("lock", b"mine")
    assert not remote.create("lock", b"theirs")
    assert remote.read("lock") == b"mine"
    remote.remove("lock")
    remote.remove("lock")
    assert remote.read_if_there("lock") is None
    assert remote.create("lock", b"theirs")


def test_a_local_file_that_is_gone_is_told_before_the_store_is_asked(
    proxy: Proxy, url: str, tmp_path: Path
) -> None:
    proxy.writes.clear()
    with pytest.raises(UserError, match=rf"^{tmp_path}/gone: cannot be read to be sent to .*/x \("):
        Remote(url, 60).upload("x", tmp_path / "gone")
    assert not proxy.writes
