"""The model card beside an exported network: what it is, what it was trained on and how, what it
scored, and what is left for the person who publishes it to say (Mitchell et al., "Model Cards for
Model Reporting", arXiv 1810.03993)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from manyfaces.configs.errors import UserError
from manyfaces.configs.node import FILE, NODE_PATH, PATH, WEIGHTS
from manyfaces.configs.paths import mapped
from manyfaces.configs.redact import redacted
from manyfaces.configs.schema import Config
from manyfaces.configs.urls import url_of
from manyfaces.data.dataset.dataset import open_data
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.evaluation.exported import Exported
from manyfaces.train.exporters.card_results import results_of

MISSING = "**NOT STATED. Fill this in before the file is handed on.**"
"""What stands where only the person who publishes a network can know what to say."""


@dataclass(frozen=True)
class Said:
    """What the person who publishes a network says of it."""

    licence: str | None = None
    intended_use: str | None = None
    limits: str | None = None


@dataclass(frozen=True)
class Facts:
    """What a card is made of."""

    name: str
    """Of the exported file or folder."""
    described: str
    """Its format."""
    usage: str
    sha256: str
    num_bytes: int
    exported: Exported
    takes: str
    """Its input and output."""
    said: Said
    state: RunState | None = None
    """Of the checkpoint that it was made of."""
    checkpoint: Path | None = None
    source_sha256: str = ""
    """Of the file that it was made of, where that is no checkpoint."""
    checks: Sequence[str] = ()
    """What was compared when it was exported."""
    latency: Sequence[str] = ()
    tables: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Further tables, by their titles."""


def card(facts: Facts) -> str:
    """The card, Markdown with the header that Hugging Face's hub reads."""
    exported, state = facts.exported, facts.state
    header = {
        "license": facts.said.licence or "unknown",
        "library_name": "manyfaces",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["face-recognition", "embeddings", str(exported.model.word())],
    }
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n# {facts.name}",
        "A network that maps an aligned face to an embedding: two faces of one person have a high "
        f"cosine. {facts.described[:1].upper()}{facts.described[1:]}. Made from "
        f"{exported.source} by manyfaces {version('manyfaces')}.",
        _table(_file_rows(facts)),
        f"## How it is used\n\n{facts.usage}",
        f"## Licence\n\n{facts.said.licence or MISSING}",
        f"## Intended use\n\n{facts.said.intended_use or MISSING}",
        f"## Limits\n\n{_limits(facts)}",
        f"## Training data\n\n{_data(facts)}",
        f"## Results\n\n{results_of(facts.checkpoint, state)}",
        f"## Checked when it was exported\n\n{_bullets(facts.checks)}",
    ]
    if facts.latency:
        parts.append(f"## Latency\n\n{_bullets(facts.latency)}")
    if state is not None:
        parts.append(f"## Recipe\n\n{_recipe(state.config)}")
    return "\n\n".join(parts) + "\n"


def _file_rows(facts: Facts) -> dict[str, str]:
    exported, model = facts.exported, facts.exported.model
    height, width = exported.image_hw
    return {
        "network": f"`{model.word()}`, embeddings of {model.embedding_dim} numbers",
        "weights": exported.precision,
        "images": f"{height} x {width} pixels, RGB, aligned as those that it was trained on",
        "takes and gives": facts.takes,
        "bytes": f"{facts.num_bytes:,}",
        "SHA-256": f"`{facts.sha256}`",
    }


def _limits(facts: Facts) -> str:
    height, width = facts.exported.image_hw
    own = [] if facts.said.limits is None else [facts.said.limits]
    return _bullets(
        [
            *own,
            f"It takes faces that were detected and aligned to {height} x {width} pixels by "
            "something else; what it gives for other images means nothing.",
            "No threshold comes with it: from which cosine on two faces count as one person has to "
            "be measured on images like those that it will see, at the false match rate that the "
            "use allows.",
            "How far its errors differ between groups of people is known only where the results "
            "below say it by group.",
            "Whether a face is a photograph, a mask or a made image is not told by it.",
        ]
    )


def _data(facts: Facts) -> str:
    state = facts.state
    if state is None:
        return (
            f"Not known: the weights came from a file (SHA-256 `{facts.source_sha256}`), which "
            f"does not say what they were trained on. {MISSING}"
        )
    config = state.config
    rows = {
        "datasets": ", ".join(_name(path) for path in config.data.paths if path) or "not named",
        "fingerprint": f"`{state.dataset}`",
        "classes": f"{state.num_classes:,}",
        **_counts(state),
        "images seen in training": f"{state.position:,}, {state.step:,} steps",
        "consent and licence of the data": MISSING,
    }
    if state.left_out:
        rows["batches left out"] = f"{len(state.left_out):,}"
    return _table(rows)


def _counts(state: RunState) -> dict[str, str]:
    """Images and identities, where the dataset is still at hand and the same."""
    if any(url_of(path) is not None for path in state.config.data.paths):
        return {}
    try:
        manifest = open_data(state.config.data).manifest
    except (UserError, OSError):
        return {}
    if manifest.fingerprint != state.dataset:
        return {}
    return {
        "images": f"{manifest.num_images:,}",
        "identities": f"{manifest.num_identities:,}",
        "alignment": manifest.template or "as the images came",
    }


def _recipe(config: Config) -> str:
    tree: dict[str, Any] = redacted(_without_folders(config).model_dump(mode="json"))
    text = yaml.safe_dump(tree, sort_keys=False, width=100)
    return (
        "The whole configuration; of paths, the last part.\n\n"
        f"<details><summary>config.yaml</summary>\n\n```yaml\n{text}```\n\n</details>"
    )


def _without_folders(config: Config) -> Config:
    """The configuration without the folders of the machines that it was used on."""
    for mark in (PATH, NODE_PATH, WEIGHTS, FILE):
        config = mapped(config, mark, _name)
    return config


def _name(path: str) -> str:
    return Path(path).name


def _table(rows: Mapping[str, str]) -> str:
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
