"""What kind of processor this is."""

import hashlib
import platform
from pathlib import Path


def name() -> str:
    """A name for this kind of processor: programs compiled for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        told = [line for line in lines if line.startswith(("flags", "Features", "model name"))][:2]
    except OSError:
        told = []
    return hashlib.sha256("".join([platform.machine(), *told]).encode()).hexdigest()[:16]
