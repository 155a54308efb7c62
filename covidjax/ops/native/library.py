"""The compiled shim: where it lies, how it is made, and whether this process can use it."""

import ctypes
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jaxlib

from covidjax.errors import UserError
from covidjax.process import processor_name

TARGETS = (
    "convolution",
    "convolution_input_gradient",
    "convolution_kernel_gradient",
    "max_pool",
    "max_pool_gradient",
    "batch_norm",
    "batch_norm_gradient",
)
SHIM = Path(__file__).with_name("shim.cpp")
# Of all sources beside it: programs that were compiled for another shim miss it.
DIGEST = hashlib.sha256(b"".join(each.read_bytes() for each in sorted(SHIM.parent.glob("*.[ch]pp")))).hexdigest()[:12]
WHEEL, HEADERS = "onednn-cpu-gomp", "onednn-devel-cpu-gomp"
COMMAND = "python -m covidjax.ops"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")


def path() -> Path:
    """Where the shim for this processor and these versions lies, once it is built: beside the wheel that it calls."""
    parts = [DIGEST, jaxlib.__version__, _version(WHEEL) or "none", processor_name()]
    name = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
    return Path(sys.prefix) / "lib" / "covidjax" / f"{name}.so"


def target(name: str) -> str:
    """The name under which XLA knows an operation of the shim."""
    return f"covidjax_{name}_{DIGEST}"


def build(compiler: str = "", flags: tuple[str, ...] = FLAGS) -> Path:
    """Compiles the shim for this processor; returns where it lies. Raises UserError where something is missing.

    compiler: 'c++' unless given or named by the environment variable CXX.
    """
    if absent := [name for name in (WHEEL, HEADERS) if _version(name) is None]:
        raise UserError(f"{' and '.join(absent)} not installed: pip install -e '.[cpu]' (Linux on x86-64)")
    compiler = compiler or os.environ.get("CXX") or "c++"
    library, header = _file(WHEEL, "libdnnl.so.3"), _file(HEADERS, "oneapi/dnnl/dnnl.hpp")
    done = path()
    try:
        done.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(suffix=".so.tmp", dir=done.parent)
    except OSError as error:
        raise UserError(f"{done.parent}: {error.strerror}") from error
    os.close(handle)
    try:
        includes = [f"-I{header.parents[2]}", f"-I{jax.ffi.include_dir()}"]
        linked = [str(library), f"-Wl,-rpath,{library.parent}"]
        subprocess.run(
            [compiler, *flags, *includes, str(SHIM), "-o", temporary, *linked],
            check=True,
            capture_output=True,
            text=True,
        )
        Path(temporary).chmod(0o755)
        os.replace(temporary, done)
    except FileNotFoundError as error:
        raise UserError(f"there is no C++ compiler {compiler!r}: install one, or name it in CXX") from error
    except subprocess.CalledProcessError as error:
        wrong = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr[:300])
        raise UserError(f"{compiler} could not compile {SHIM.name}: {wrong}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return done


def load(library: Path) -> str:
    """Makes the shim's operations known to XLA; returns why that is not possible, or nothing.

    Its threads sleep while they wait, unless OMP_WAIT_POLICY says otherwise: libgomp's would spin, and take the cores
    from XLA's own threads and from other processes, which two on two cores do not come out of. libgomp reads the
    variable when it is loaded; children of this process get it as well.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        functions = ctypes.CDLL(str(library))  # held by the process from now on
        for name in TARGETS:
            jax.ffi.register_ffi_target(target(name), jax.ffi.pycapsule(getattr(functions, name)), platform="cpu")
    except (OSError, AttributeError) as error:
        return " ".join(str(error).split())
    return ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _file(package: str, ending: str) -> Path:
    """A file of an installed package. Raises UserError where it is gone, as with `pip install --target`."""
    for each in importlib.metadata.files(package) or ():
        if str(each).endswith(ending) and (found := Path(str(each.locate())).resolve()).exists():
            return found
    raise UserError(f"{package} is installed without its {ending}: pip install --force-reinstall {package}")
