"""The files of a run's folder."""

from dataclasses import dataclass
from pathlib import Path

from manyfaces.configs.schema import Config


@dataclass(frozen=True)
class RunFolder:
    """`RUN`, and what stands in it."""

    path: Path

    @classmethod
    def of(cls, config: Config) -> "RunFolder":
        """The folder of the run that the configuration names."""
        return cls(Path(config.run.dir).absolute() / config.run.name)

    @property
    def identity(self) -> Path:
        """What the run is: its configuration and its dataset's fingerprint."""
        return self.path / "run.json"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        """What the run was going to cost, as text."""
        return self.path / "plan.txt"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def plots(self) -> Path:
        """The folder of the plots."""
        return self.path / "plots"

    @property
    def evaluation(self) -> Path:
        """The results of the last evaluation."""
        return self.path / "evaluation.json"

    @property
    def quarantine(self) -> Path:
        """Samples that could not be decoded."""
        return self.path / "quarantine.jsonl"

    @property
    def samples(self) -> Path:
        """The folder of the lists of samples that were trained on."""
        return self.path / "samples"

    @property
    def faults(self) -> Path:
        """An empty file for each fault on purpose that has happened."""
        return self.path / ".faults"

    @property
    def left_out(self) -> Path:
        """Batches that the run leaves out."""
        return self.path / "left_out.jsonl"

    @property
    def artifacts(self) -> list[Path]:
        """The files that MLflow is given besides the metrics."""
        return [self.config, self.plan, self.evaluation, *sorted(self.plots.glob("*.png"))]
