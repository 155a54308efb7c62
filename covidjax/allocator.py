"""glibc's allocator, told to keep what it has: without this XLA:CPU faults its buffers in again at every step."""

import ctypes
import os

# malloc.h: parameter numbers of mallopt
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
