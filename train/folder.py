"""The files of a run's folder, and where that is."""

from dataclasses import dataclass
from pathlib import Path

from manyfaces.configs.redact import redact
from manyfaces.configs.schema import Config
from manyfaces.configs.urls import url_of
from manyfaces.data.dataset.manifest import IDENTITIES
from manyfaces.train.record import EVENTS, METRICS

CHECKPOINTS = "checkpoints"
"""The folder of a run that holds its checkpoints."""
EVALUATION = "evaluation"
"""The folder of a run that holds a folder for each evaluated step."""
PLOTS = (".png", ".svg")
"""What the names of plots end in."""
RUN_FILE = "mlflow.json"
"""Which MLflow run continues the run."""


def work_folder(url: str, work_dir: str) -> Path:
    """The folder of this machine in which the run at the URL works, another for each URL."""
    return Path(work_dir).expanduser().absolute().joinpath(*redact(url).split("://", 1))


def run_url(config: Config) -> str | None:
    """Where the run is kept besides its folder: a URL with its name, where `run.dir` is one."""
    url = url_of(config.run.dir)
    return url and f"{url}/{config.run.name}"


@dataclass(frozen=True)
class RunFolder:
    """`RUN`, and what stands in it."""

    path: Path

    @classmethod
    def of(cls, config: Config) -> "RunFolder":
        """The folder of the run that the configuration names; for a run at a URL the one that it
        works in."""
        if (url := run_url(config)) is not None:
            return cls(work_folder(url, config.run.work_dir))
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
    def plan_figures(self) -> Path:
        """The same as numbers: the memory of a worker."""
        return self.path / "plan.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def plots(self) -> Path:
        """The folder of the plots."""
        return self.path / "plots"

    @property
    def report(self) -> Path:
        """The page about the run."""
        return self.path / "report.html"

    @property
    def evaluation(self) -> Path:
        """The results of the evaluation with which the run ended."""
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
    def logs(self) -> Path:
        """The folder of what each rank has printed, where Ray started it."""
        return self.path / "logs"

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
        """The files that MLflow is given besides the metrics. Images of people are not among them,
        but for those in a page that was made to be shown."""
        files = self.config, self.plan, self.evaluation, self.report
        return [*files, *self._drawn, *self._reports()]

    @property
    def _drawn(self) -> list[Path]:
        return sorted(each for each in self.plots.glob("*") if each.suffix in PLOTS)

    def _reports(self) -> list[Path]:
        """The files of each evaluated step, but for examples."""
        found = (self.path / EVALUATION).glob("step-*/*")
        return sorted(each for each in found if each.suffix in (*PLOTS, ".json"))

    @property
    def record(self) -> list[str]:
        """The names of the files that tell of the run, but for what is drawn from them."""
        files = self.identity, self.config, self.plan, self.plan_figures, self.evaluation
        more = self.quarantine, self.left_out
        return [*(file.name for file in (*files, *more)), METRICS, EVENTS, RUN_FILE, IDENTITIES]

    @property
    def kept(self) -> list[Path]:
        """The files that a store keeps besides the checkpoints, as far as they are there."""
        files = [*map(self.path.joinpath, self.record), self.report, *self._drawn]
        reports = self._reports()
        newest = reports[-1].parent if reports else None
        files += [file for file in reports if file.parent == newest]
        return [file for file in files if file.is_file()]
