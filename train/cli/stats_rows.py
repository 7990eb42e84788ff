"""The table that `manyfaces data stats` shows."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from manyfaces.data.dataset.inspect import Stats


def stats_rows(found: "Stats") -> list[tuple[str, str]]:
    """(what, how much) of each row."""
    per = found.images_of_identity_C
    least, mean, most = found.jpeg_bytes
    sizes = []
    for px, share in found.sizes[:5]:
        name = "unreadable" if px is None else f"{px[1]}x{px[0]}"
        sizes.append(f"{name} {share / found.sizes_read:.1%}")
    others = len(found.sizes) - 5
    more = f" and {others} more" if others > 0 else ""
    return [
        ("images", f"{found.images:,}"),
        ("identities", f"{found.identities:,}"),
        (
            "images of an identity",
            f"min {per.min():,}, median {found.median:g}, mean {per.mean():.1f}, max {per.max():,}",
        ),
        ("its deciles", " ".join(f"{number:,}" for number in found.deciles)),
        ("bytes", f"{found.shard_bytes / 1e6:,.1f} MB in {found.shards:,} shards"),
        ("bytes of a JPEG", f"min {least:,}, mean {mean:,.0f}, max {most:,}"),
        ("width x height", f"{', '.join(sizes)}{more} of {found.sizes_read:,}"),
    ]
