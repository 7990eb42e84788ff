"""What a rank says of the memory that its node or its control group has left."""

from pathlib import Path

import pytest

from manyfaces.configs import this_machine
from manyfaces.configs.this_machine import limiting_group
from manyfaces.train.memory_use import memory_use

LIMIT, USED, FILES = 64 << 20, 63 << 20, 40 << 20
OF_THE_PARENT = "17\n"
VERSIONS = {
    "0::/job/step\n": ("", "memory.max", "memory.current", "inactive_file"),
    "4:memory:/job/step\n": (
        "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}


@pytest.mark.parametrize("own", VERSIONS)
def test_a_nested_group_is_not_full_of_what_the_kernel_gives_up(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, limit, used, files = VERSIONS[own]
    job = tmp_path / base / "job"
    (job / "step").mkdir(parents=True)
    (job / limit).write_text(f"{LIMIT}\n")
    (job / used).write_text(f"{USED}\n")
    (job / "memory.stat").write_text(f"anon 5\n{files} {FILES}\nactive_file 7\n")
    (job / "step" / used).write_text(OF_THE_PARENT)
    group = limiting_group(own, tmp_path)
    monkeypatch.setattr(this_machine, "control_group", lambda: group)
    told = memory_use()
    assert (told.total, told.free) == (LIMIT, LIMIT - USED + FILES)
    assert not told.is_nearly_full
    (job / "memory.stat").write_text(f"anon 5\n{files} 0\n")
    assert memory_use().is_nearly_full


def test_a_group_that_does_not_tell_its_use_leaves_what_the_node_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = this_machine.ControlGroup(1 << 50, tmp_path)
    monkeypatch.setattr(this_machine, "control_group", lambda: group)
    told = memory_use()
    assert told.total == 1 << 50
    assert told.free > 0


def test_what_cannot_be_read_of_the_groups_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def odd() -> None:
        raise ValueError("not enough values to unpack")

    monkeypatch.setattr(this_machine, "control_group", odd)
    assert memory_use().total == 0
