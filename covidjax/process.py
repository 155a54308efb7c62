"""Facts and settings of a process: allocator, folder of caches, processor, revision. No framework is imported here."""

import ctypes
import hashlib
import os
import platform
import subprocess
from pathlib import Path

# glibc's malloc.h: parameter numbers of mallopt. Without these XLA:CPU faults its buffers in again at every step.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8
SETTINGS = ((ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 64 * 2**20))


def keep_memory() -> str:
    """Sets the allocator of this process, for commands at their start; returns what was done, for the record.

    Freed buffers are kept instead of given back to the system, which raises peak memory. COVIDJAX_MALLOC=default in
    the environment turns it off; elsewhere than on glibc nothing happens.
    """
    if os.environ.get("COVIDJAX_MALLOC") == "default":
        return "default (COVIDJAX_MALLOC)"
    try:
        libc = ctypes.CDLL("libc.so.6")
        done = [libc.mallopt(parameter, value) for parameter, value in SETTINGS]
    except (OSError, AttributeError):
        return "default (not glibc)"
    return "glibc, memory kept" if all(done) else "default (mallopt refused)"


def processor_name() -> str:
    """A name for this kind of processor: programs compiled for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        described = [line for line in lines if line.startswith(("flags", "Features", "model name"))][:2]
    except OSError:
        described = []
    return hashlib.sha256("".join([platform.machine(), *described]).encode()).hexdigest()[:16]


def cache_dir(configured: str) -> Path:
    """The folder that a config names, else the user's cache folder."""
    if configured:
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "covidjax"


def git_revision() -> str:
    """The revision of the source, with '+changes' where files differ from it; 'unknown' outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
