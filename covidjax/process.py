"""Facts and settings of a process: allocator, folder of caches, processor, revision. No framework is imported here."""

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
import traceback
from pathlib import Path

from covidjax.errors import UserError

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


def path_of(text: str | os.PathLike[str]) -> Path:
    """The path that a flag or a key of the config names: `~` and `~user` stand for home folders.

    Raises UserError where there is no such home, for an address such as gs://bucket, as a store has no locks and no
    renaming, and for a name that is not UTF-8, which no text file could hold.
    """
    if "://" in os.fspath(text):
        raise UserError(f"{text} is an address, and a path is needed: mount the store, or use a disk that all share")
    try:
        os.fspath(text).encode()
        return Path(text).expanduser()
    except UnicodeEncodeError as error:
        raise UserError(f"{os.fspath(text)!a} is not a name in UTF-8: rename the folder or the file") from error
    except RuntimeError as error:
        raise UserError(f"{text}: there is no home folder {Path(text).parts[0]}: write ./{text} for a name") from error


def cache_dir(configured: str) -> Path:
    """The folder that a config names, else the user's cache folder, else, without a home, `temporary_cache`."""
    if configured:
        return path_of(configured)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "covidjax"
    except RuntimeError:  # neither HOME nor an entry of the user
        return temporary_cache()


def temporary_cache() -> Path:
    """A folder of this user among the temporary files, the same for all processes where no other user has taken it."""
    folder = Path(tempfile.gettempdir()) / f"covidjax-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return Path(tempfile.mkdtemp(prefix="covidjax-"))
    return folder


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def let_matplotlib_write() -> None:
    """Before matplotlib is imported: where its folders in the user's home cannot be written, of which it would warn
    with each start, MPLCONFIGDIR names one among the temporary files."""
    try:
        homes = [
            Path(os.environ.get(name) or Path(default).expanduser()) / "matplotlib"
            for name, default in (("XDG_CONFIG_HOME", "~/.config"), ("XDG_CACHE_HOME", "~/.cache"))
        ]
    except RuntimeError:  # neither HOME nor an entry of the user
        homes = []
    if "MPLCONFIGDIR" not in os.environ and not (homes and all(map(is_writable, homes))):
        os.environ["MPLCONFIGDIR"] = str(temporary_cache() / "matplotlib")


def system_error(error: OSError) -> str:
    """The error of a system call in one line: the file, or where the system names none, which function called."""
    reason = error.strerror or str(error) or type(error).__name__
    if isinstance(error.filename, str | bytes):  # it may be the number of an open file
        return f"{os.fsdecode(error.filename)}: {reason}"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if "covidjax" in Path(frame.filename).parts]
    place = f" in {own[-1].name} of {Path(own[-1].filename).name}" if own else ""
    return f"{reason}{place} (the system names no file): look for a full disk, a quota or a lost network disk"


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
