"""Of a message of Ray's daemons the first line is printed."""

from typing import Any

import pytest
from ray._private import worker

from manyfaces.cluster.ray_messages import keep_first_lines


def test_a_dump_is_cut_to_its_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[tuple[Any, Any]] = []
    monkeypatch.setattr(
        worker, "print_to_stdstream", lambda batch, **more: printed.append((batch, more))
    )
    keep_first_lines()
    message = {"lines": ["Raylet is terminated.\n  [state-dump] x\n"], "pid": "raylet"}
    worker.print_to_stdstream(message, ignore_prefix=False)
    cut = {"lines": ["Raylet is terminated."], "pid": "raylet"}
    assert printed == [(cut, {"ignore_prefix": False})]
    assert "state-dump" in message["lines"][0]
