"""The list of samples that a run has trained on, as `tracking.log_samples` has it written."""

import json
from pathlib import Path
from typing import Any

from manyfaces.configs.load import load
from manyfaces.data.dataset.dataset import open_data
from manyfaces.data.orders.build import build_order


def read_samples(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """The rows of all ranks by step, each step's in the order of the ranks."""
    found: dict[int, list[dict[str, Any]]] = {}
    paths = sorted(folder.glob("rank-*.jsonl"), key=lambda path: int(path.stem[5:]))
    for path in paths:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            found.setdefault(row["step"], []).append(row)
    return found


def check_in_order(config: Path, run: Path) -> dict[int, list[dict[str, Any]]]:
    """Each step, from the first one on, was trained on the samples that the order has at its place.
    Returns what `read_samples` does."""
    tree = load(str(config), [])
    order = build_order(open_data(tree.data), tree.data.order, tree.run.seed)
    batch_size = tree.train.batch_size
    found = read_samples(run / "samples")
    assert list(found) == list(range(1, len(found) + 1))
    for step, parts in found.items():
        trained = [sample for part in parts for sample in part["ids"]]
        assert trained == order.ids((step - 1) * batch_size, batch_size).tolist()
    return found
