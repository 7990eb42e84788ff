"""Bytes, numbers and times for people."""

MINUTE, HOUR, DAY = 60.0, 3600.0, 24 * 3600.0
"""Seconds."""


def size(number: float) -> str:
    """So many bytes to three figures in the largest binary unit that fits: `1.95 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} PiB"


def count(number: float) -> str:
    """A number to three figures with the prefix of its thousands: `43.6 M`. A unit may follow."""
    for unit in ("", " k", " M", " G", " T", " P"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} E"


def duration(seconds: float) -> str:
    """So many seconds to three figures, in the largest unit of which there are two: `3.5 h`."""
    for length, name in ((DAY, "days"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= 2 * length:
            number = seconds / length
            return f"{number:,.0f} {name}" if number >= 100 else f"{number:.3g} {name}"
    return f"{seconds:.3g} s"
