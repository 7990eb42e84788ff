"""How large a dataset is, by its manifest alone: for a plan, before anything is opened."""

from pathlib import Path

from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.manifest import MANIFEST, parse_manifest

PATIENCE_S = 5.0
"""How long a plan waits for a store; the run itself waits longer."""


def dataset_size(config: schema.Data) -> tuple[int, int, list[tuple[str, str]]]:
    """Number of images, number of identities, and lines (label, text) that say where the numbers
    come from and what the parts of a mixture are.

    Raises `UserError` where nothing tells them.
    """
    try:
        sizes = [_read(path, min(config.store_patience_s, PATIENCE_S)) for path in config.paths]
    except UserError as error:
        if config.expect_images is None or config.expect_identities is None:
            remedy = "set data.path or data.mixture, or data.expect_images and _identities"
            raise UserError(f"the plan needs the dataset's size: {error}; {remedy}") from error
        source = f"data.expect_images and data.expect_identities: {error}"
        return config.expect_images, config.expect_identities, [("dataset size from", source)]
    images, identities = (sum(counts) for counts in zip(*sizes, strict=True))
    lines = [("dataset size from", ", ".join(f"{path}/{MANIFEST}" for path in config.paths))]
    for part, share, (own, people) in zip(config.mixture, config.shares, sizes, strict=False):
        passes = f"seen {float(share * images / own):.3g} times an epoch"
        lines.append(
            (
                "  of a batch",
                f"{float(share):.1%} from {part.path}: {own:,} images of {people:,} identities, "
                f"{passes}",
            )
        )
    return images, identities, lines


def _read(path: str, patience_s: float) -> tuple[int, int]:
    if "://" in path:
        from manyfaces.data.store.remote import Remote

        body = Remote(path, patience_s).read(MANIFEST)
    elif path and (manifest := Path(path) / MANIFEST).is_file():
        body = manifest.read_bytes()
    else:
        raise UserError(f"{Path(path) / MANIFEST} is not there")
    facts = parse_manifest(body, path)
    return facts.num_images, facts.num_identities
