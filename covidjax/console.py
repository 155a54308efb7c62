"""Text for the person at the terminal: progress on standard error, and tables."""

import sys
import time
from collections.abc import Sequence


def say(text: str) -> None:
    """Print a line, over a bar if one is there."""
    erase = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(erase + text, file=sys.stderr, flush=True)


def erase() -> None:
    """Clear the line of a terminal that tells what is going on."""
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class Progress:
    """A bar on a terminal, else a line every five seconds. Silent for the first `patience` seconds."""

    def __init__(self, text: str, total: int, patience: float = 0) -> None:
        self.text, self.total = text, total
        self.terminal = sys.stderr.isatty()
        self.start = time.monotonic()
        self.next = self.start + max(patience, 0 if self.terminal else 5)

    def show(self, done: int) -> None:
        """Tell that `done` of the total are done."""
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + (0.1 if self.terminal else 5)
        if self.terminal:
            print(f"\r{self.text} [{'#' * (30 * done // self.total):30}] {done}/{self.total}", end="", file=sys.stderr)
            sys.stderr.flush()
        else:
            say(f"{self.text} {done}/{self.total}")

    def finish(self, text: str) -> None:
        """Replace the bar by a last line."""
        say(f"{text} in {time.monotonic() - self.start:.1f} s")


def format_table(lines: Sequence[Sequence[str]], align: str) -> str:
    """Columns as wide as their widest cell. align: '<' or '>' for each column; lines: the header is the first."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(format_row(line, align, widths) for line in lines)


def format_row(cells: Sequence[str], align: str, widths: Sequence[int]) -> str:
    """One line of a table; a cell that is wider than its column pushes the others."""
    columns = zip(cells, align, widths, strict=True)
    return "  ".join(f"{cell:{side}{width}}" for cell, side, width in columns).rstrip()
