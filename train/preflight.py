"""What a run asks of the nodes of a cluster, and who asks them: this process, or a job there."""

from collections.abc import Callable
from dataclasses import dataclass

from manyfaces.cluster.preflight.probes import Folder
from manyfaces.cluster.preflight.report import DATASET, DECODE, STORE, Report, Wanted
from manyfaces.configs import paths, plan
from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Config
from manyfaces.configs.urls import url_of
from manyfaces.data.dataset.size import dataset_size
from manyfaces.train.folder import RunFolder, run_url

DASHBOARD_PORT = 8265
"""Where no Ray cluster takes nodes: who gives it means the dashboard."""
PROBES = {
    DATASET: "manyfaces.train.probes:dataset",
    STORE: "manyfaces.train.probes:store",
    DECODE: "manyfaces.train.decode_probe:decode",
}
"""The last imports DALI and torch, which only the nodes do."""


@dataclass(frozen=True)
class Asking:
    """A preflight that is about to begin."""

    config: Config | None
    """With absolute paths; None where only the machines are looked at."""
    images_per_s: float | None
    """Images a second that the run needs of all nodes together, where that is known."""

    def wanted(self) -> Wanted:
        """What the nodes are asked."""
        if self.config is None:
            return Wanted(
                probes={DECODE: PROBES[DECODE]},
                payload={"config": None},
                images_per_s=self.images_per_s,
            )
        config = self.config
        figures = [DATASET, *([STORE] if run_url(config) else []), DECODE]
        gpus = config.cluster.gpus_per_worker
        return Wanted(
            folders=tuple(folders(config)),
            probes={figure: PROBES[figure] for figure in figures},
            payload={"config": config.model_dump(mode="json")},
            images_per_s=self.images_per_s,
            wants_gpus=None if gpus == "auto" else gpus == 1,
        )

    def report(self, address: str | None, tell: Callable[[str], None]) -> Report:
        """Ask: a job of the cluster whose dashboard is at the URL `address`, else this process.
        `tell` gets what is being asked. Raises `UserError` where nothing answers there."""
        if address is not None and is_dashboard(address):
            from manyfaces.cluster.dashboard import dashboard_address
            from manyfaces.cluster.preflight.job import preflight_elsewhere
            from manyfaces.configs.load import dump

            dashboard = dashboard_address(address)
            tell(f"a job at {dashboard}")
            options = [f"--images-per-s={self.images_per_s}"] if self.images_per_s else []
            text = None if self.config is None else dump(self.config)
            return preflight_elsewhere(dashboard, text, options)
        from manyfaces.cluster.jobs import package
        from manyfaces.cluster.preflight.ask import preflight

        return preflight(address, package, self.wanted(), tell)


def is_dashboard(address: str) -> bool:
    """Whether the nodes are asked by a job that is submitted there."""
    return "://" in address or address.endswith(f":{DASHBOARD_PORT}")


def asking(config: Config | None, images_per_s: float | None) -> Asking:
    """A preflight of what this configuration will run. Raises `UserError` for a home of nobody."""
    return Asking(None if config is None else paths.absolute(config), images_per_s)


def folders(config: Config) -> list[Folder]:
    """The folders that a run of this configuration writes to, and what it will need there."""
    found = []
    key, path = "run.dir", config.run.dir
    if run_url(config) is not None:
        key, path = "run.work_dir", config.run.work_dir
    found.append(
        Folder(
            key=key,
            path=path,
            is_shared=True,
            needs_bytes=checkpoint_bytes(config),
            held=str(RunFolder.of(config).checkpoints),
        )
    )
    if any(url_of(each) is not None for each in config.data.paths):
        cache_bytes = int(config.data.cache_gb * 1e9)
        found.append(
            Folder(
                key="data.cache_dir",
                path=config.data.cache_dir,
                is_shared=False,
                needs_bytes=cache_bytes,
            )
        )
    return found


def checkpoint_bytes(config: Config) -> int | None:
    """Bytes of all checkpoints that the run will have at one time, the one that is being written
    among them; None where the dataset's size is not known here."""
    try:
        images, identities, _ = dataset_size(config.data)
        found = plan.plan(config, images, identities, 1)
    except UserError:  # the nodes tell what is wrong with the dataset
        return None
    kept = found.kept_checkpoints + 1
    if config.checkpoint.best is not None:
        kept += config.checkpoint.best.keep
    if config.checkpoint.keep_every_steps is not None:
        kept += found.num_steps // config.checkpoint.keep_every_steps
    return kept * found.checkpoint_bytes
