"""Bytes, numbers and times for people."""

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 24 * 3600.0


def size(number: float) -> str:
    """Bytes."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} PiB"


def count(number: float) -> str:
    """A number."""
    for unit in ("", " k", " M", " G", " T", " P"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} E"


def duration(seconds: float) -> str:
    """A time."""
    for length, name in ((_DAY, "days"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= 2 * length:
            number = seconds / length
            return f"{number:,.0f} {name}" if number >= 100 else f"{number:.3g} {name}"
    return f"{seconds:.3g} s"
