"""Who cannot join a cluster is told why in one line."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.exceptions import AuthenticationError

from manyfaces.cluster import connection, launch
from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Cluster


@contextlib.contextmanager
def code() -> Iterator[Path]:
    yield Path("package")


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (ConnectionError("no"), "cluster.address h:1: no Ray cluster answers there; "),
        (
            AuthenticationError("no token"),
            "cluster.address h:1: the cluster wants a token, and has not got the right one; set",
        ),
        (
            RuntimeError("\nVersion mismatch: Ray 2.55.\nThis process"),
            "cluster.address h:1: Version mismatch: Ray 2.55; give auto or HOST:PORT of the head, ",
        ),
        (ValueError("Malformed address"), "cluster.address h:1: Malformed address; give auto or"),
        (UserError("the wheel cannot be built"), "the wheel cannot be built"),
    ],
)
def test_what_ray_says_is_one_line(
    raised: Exception, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        raise raised

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError) as told:
        connection._join_cluster("h:1", code)
    assert str(told.value).startswith(line)
    assert "\n" not in str(told.value)


def test_an_environment_that_names_a_dashboard_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(UserError, match=r"RAY_ADDRESS is http://127.0.0.1:8265: unset it, or"):
        connection._join_cluster("auto", code)
    assert not ray.is_initialized()


@pytest.mark.parametrize("address", ["http://head:8265", "ray://head:10001"])
def test_a_run_does_not_join_where_jobs_are_submitted(address: str) -> None:
    with pytest.raises(UserError, match=f"cluster.address {address}: a run joins the cluster from"):
        launch.refuse(Cluster(address=address))
