"""Where the wall time of a run goes."""

import contextlib
import time
from collections.abc import Iterator

PARTS = ("set-up", "data", "feature passes", "compilation", "steps", "evaluation", "checkpoints", "report")


class Clock:
    """Seconds by what a process was doing, from when this is made. What is compiled beside that is not in it."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._seconds = dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def spent(self, part: str) -> Iterator[None]:
        """What happens within it counts as a part, one of PARTS."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(part, time.monotonic() - began)

    def add(self, part: str, seconds: float) -> None:
        """So many seconds more of a part."""
        self._seconds[part] += seconds

    def settle(self, part: str) -> None:
        """All so far that is of no part yet counts as this one."""
        self.add(part, time.monotonic() - self._began - sum(self._seconds.values()))

    def account(self) -> dict[str, float]:
        """Seconds of each part so far, 'rest' and 'total'."""
        total = time.monotonic() - self._began
        found = {**self._seconds, "rest": total - sum(self._seconds.values()), "total": total}
        return {part: round(seconds, 2) for part, seconds in found.items()}
