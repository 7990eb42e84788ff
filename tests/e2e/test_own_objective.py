"""An objective of one's own that trains more than the backbone, and keeps a state: the run resumes
to the bit, and the backbone is evaluated without the rest."""

from pathlib import Path

import pytest
import torch
from commands import forked, recipe
from safetensors.torch import load_file

from manyfaces.configs.load import load

OWN = '''
import torch
from torch import nn

from manyfaces.train.objectives.objective import HeldByRank0, Loss, Objective


class Projected(nn.Module):
    """A projector behind the backbone."""

    def __init__(self, backbone):
        super().__init__()
        self.encoder = backbone
        self.projector = nn.Linear(32, 32)

    def forward(self, images):
        output = self.encoder(images)
        output.embeddings["projected"] = self.projector(output.embeddings["main"])
        return output


class Still(Objective):
    """Projections stay near those of the steps before."""

    def __init__(self):
        # As a program may hold it: not contiguous.
        self.mean = torch.zeros(32, 2).T

    def network(self, backbone):
        return Projected(backbone)

    def loss(self, forward, batch, moment):
        projected = forward.embeddings("projected")
        value = (projected - self.mean[0]).square().mean()
        self.mean.mul_(0.9).add_(0.1 * projected.detach().mean(0))
        return Loss(value, value.detach(), value.isfinite(), torch.tensor(moment.last))

    def dry_run(self, forward):
        return 1e-6 * forward.embeddings("projected").sum()

    def state(self):
        return {"mean": HeldByRank0({"mean": self.mean})}
'''


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    files = sorted(checkpoint.glob("*.safetensors"))
    assert [file.stem for file in files] == ["backbone", "mean", "network", "optimizer"]
    return {f"{file.stem}/{name}": t for file in files for name, t in load_file(file).items()}


@pytest.mark.slow
def test_a_network_of_more_than_the_backbone(dataset_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "still.py"
    file.write_text(OWN)
    config = recipe(
        tmp_path,
        dataset_path,
        objective={"kind": "custom", "file": str(file), "name": "Still"},
        head={},
        train={"epochs": 1},
        cluster={"workers": 1, "launcher": "process"},
    )
    text = config.read_text()
    config.write_text(text[: text.index("head:")] + text[text.index("model:") :])
    done = forked("train", config)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "run"
    newest = max((run / "checkpoints").glob("step-*"))
    whole = weights(newest)
    assert whole["mean/mean"].any()
    assert set(load_file(newest / "network.safetensors")) == {"projector.weight", "projector.bias"}
    backbone = load(str(config), []).model.build(image_hw=(64, 64))
    backbone.load_state_dict(load_file(newest / "backbone.safetensors"))

    before = newest.with_name("step-00000005")
    again = forked("train", config, "run.name=again", f"run.resume_from={before}")
    assert again.returncode == 0, again.stdout + again.stderr
    resumed = weights(tmp_path / "runs" / "again" / "checkpoints" / newest.name)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())

    pairs = tmp_path / "pairs.bin"
    assert forked("data", "pairs", dataset_path, pairs, "--count", "200").returncode == 0
    evaluated = forked("evaluate", run, "--pairs", pairs)
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    assert "pairs" in evaluated.stdout
