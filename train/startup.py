"""How long a worker takes from the start of its process to its first step, by part."""

import os
import time
from pathlib import Path


class Startup:
    """Measures the parts of a start, one after the other, so that together they are all of it. The
    first is `process`: what the process had run for when this was made."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {"process": process_age_s()}
        """Seconds of each part that is done, in their order."""
        self._since = time.monotonic()
        self._ended = self._taken = False

    def done(self, part: str) -> None:
        """This part ends now, and the next one begins. After the last one it does nothing."""
        if self._ended:
            return
        now = time.monotonic()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now

    def end(self, part: str) -> bool:
        """This part ends now, and is the last one; whether that was not known yet."""
        self.done(part)
        was_open, self._ended = not self._ended, True
        return was_open

    def take_metrics(self) -> dict[str, float]:
        """Its seconds by the names that they are recorded under, once: none before the last part
        ended, nor the next time."""
        if not self._ended or self._taken:
            return {}
        self._taken = True
        parts = {f"start/{part.replace(' ', '_')}_s": taken for part, taken in self.seconds.items()}
        return {**parts, "start/all_s": self.total_s}

    @property
    def total_s(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())

    def __str__(self) -> str:
        """What a person is told: all seconds, and those of the parts that took some."""
        parts = [(part, f"{seconds:.1f}") for part, seconds in self.seconds.items()]
        told = ", ".join(f"{part} {seconds}" for part, seconds in parts if seconds != "0.0")
        return f"first step {self.total_s:.1f} s after its process began: {told}"


def process_age_s() -> float:
    """Seconds since this process was started; 0 where the system does not tell, as only Linux
    does."""
    try:
        # The name of the program, in parentheses, may hold spaces.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - began_s, 0.0)
    except (OSError, AttributeError):
        return 0.0
