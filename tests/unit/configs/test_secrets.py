"""What counts as a secret in a configuration, and what does not."""

from pathlib import Path

import pytest

from manyfaces.configs.load import load
from manyfaces.configs.secrets import keys_with_secrets

OWN = """
from manyfaces.models.margins.margin import Margin


class Own(Margin):
    def __init__(self, **given):
        pass
"""
# Put together here, so that nothing that searches for tokens finds this file.
PLANTED = {
    "aws": "AKIA" + "A1B2C3D4" * 2,
    "hub": "hf_" + "a1B2c3D4" * 4,
    "bearer": "Bearer " + "a1b2c3d4e5",
    "api_key": "anything",
    "authToken": "anything",
    "url": "https://host/x?X-Amz-Signature=abc",
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_secret_is_found(name: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    margin = f"{{kind: custom, file: {tmp_path}/own.py, name: Own, parameters: "
    config = load("demo", [f"head.margin={margin}{{'{name}': '{PLANTED[name]}', plain: text}}}}"])
    assert keys_with_secrets(config) == [f"head.margin.parameters.{name}"]


def test_our_recipes_hold_none() -> None:
    for recipe in ("demo", "quick/arcface", "pretrain/ms1mv3_r50"):
        assert keys_with_secrets(load(recipe, ["data.path=s3://bucket/faces"])) == []
