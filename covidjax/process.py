"""Settings of a whole process: the allocator, the folder of caches, the kind of processor."""

import ctypes
import hashlib
import os
import platform
from pathlib import Path

import jax

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


def prepare_process(precision: str) -> str:
    """Settings of the whole process, before the first array is made; returns what became of the allocator.

    Compiled programs are kept in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names another.
    """
    if precision == "float64":
        jax.config.update("jax_enable_x64", True)
    if getattr(jax.config, "jax_compilation_cache_dir") is None:  # noqa: B009 (the type checker does not know it)
        jax.config.update("jax_compilation_cache_dir", str(cache_dir("") / "programs" / processor_name()))
    return keep_memory()
