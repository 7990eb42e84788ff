"""Which versions go together is one rule for submit and for preflight."""

import pytest

from manyfaces.cluster.versions import compute_together, talk_together


@pytest.mark.parametrize(
    ("name", "one", "other", "compute", "talk"),
    [
        ("torch", "2.13.0+cpu", "2.13.0+cu130", True, True),
        ("torch", "2.13.0", "2.13.1", False, True),
        ("torch", "2.13.0", "2.12.0", False, False),
        ("torch", "2.13.0.dev20260801", "2.13.0", False, True),
        ("python", "3.11.2", "3.11.14", True, True),
        ("python", "3.11.2", "3.12.2", False, False),
        ("ray", "2.60.0", "2.6.0", False, False),
        ("dali", "none", "2.4.0", False, False),
        ("driver", "580.65.06", "580.82.07", False, False),
    ],
)
def test_versions(name: str, one: str, other: str, compute: bool, talk: bool) -> None:
    for pair in ((one, other), (other, one)):
        assert compute_together(name, *pair) is compute
        assert talk_together(*pair) is talk
    assert compute_together(name, one, one)
