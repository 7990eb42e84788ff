"""What has to hold of a folder that a checkpoint is going to be copied to, before much is read."""

import shutil
from pathlib import Path

from manyfaces.configs.errors import UserError
from manyfaces.train.checkpoint.edit_lock import sweep_edits
from manyfaces.train.checkpoint.layout import FREE_SPACE_FACTOR
from manyfaces.train.folder import RunFolder


def refuse_out(out: Path) -> None:
    """Raise `UserError` for a folder that is there, and for one that a run would resume from."""
    if out.exists():
        raise UserError(f"{out}: is there already; give a folder that does not exist yet")
    if RunFolder(out.parent.parent).identity.exists():
        raise UserError(
            f"{out}: that run would resume from it; give a folder of no run, such as "
            f"edited/checkpoints/{out.name}"
        )


def make_room(out: Path, num_bytes: int) -> None:
    """Make the folder's parent and sweep it. Raises `UserError` where the free space is too little
    for a checkpoint of so many bytes."""
    needed = num_bytes * FREE_SPACE_FACTOR
    out.parent.mkdir(parents=True, exist_ok=True)
    sweep_edits(out.parent)  # what a killed edit has left takes of the free space
    if (free := shutil.disk_usage(out.parent).free) < needed:
        raise UserError(
            f"{out}: needs {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB free; free some space"
        )
