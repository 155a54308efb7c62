"""Making the native operations, going on without them, their threads, and several devices."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from covidjax.errors import UserError
from covidjax.ops import self_check
from covidjax.ops.choose import Choice, choose
from covidjax.ops.native import library
from tests.support import ROOT, on_devices

CHOICE = choose("auto")
needs_native = pytest.mark.skipif(not CHOICE.native, reason=CHOICE.note)


def python(script: str, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs a script in a process of its own, with more variables in its environment."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False)


def test_xla_is_taken_when_it_is_asked_for() -> None:
    assert choose("xla") == Choice(False, "operations: XLA's, as config.ops says")


REFUSALS: dict[str, tuple[Any, str, Any, str]] = {
    "no shim": (library, "path", lambda: Path("none.so"), library.COMMAND),
    "cannot be loaded": (library, "path", lambda: Path(__file__), "cannot be loaded"),
    "fails its check": (self_check, "TOLERANCE", 0.0, "fail their check: the "),  # no two libraries round alike
    "another device": (library.jax, "default_backend", lambda: "gpu", "the device is a gpu"),
    "another processor": (library, "processor_name", lambda: "another", "not built for this processor"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_shim_that_does_not_serve_is_not_used_and_told_why(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, value, reason = REFUSALS[name]
    if name == "fails its check" and not CHOICE.native:
        pytest.skip(CHOICE.note)
    here = library.path()
    monkeypatch.setattr(owner, attribute, value)
    choice = choose("auto")
    with pytest.raises(UserError) as caught:
        choose("native")
    told = choice.note.removeprefix("operations: XLA's; ")
    assert reason in told and told in str(caught.value) and "\n" not in choice.note and not choice.native
    assert (library.path() == here) == (attribute not in ("path", "processor_name"))


@needs_native
def test_the_choice_is_the_same_in_the_middle_of_a_trace_and_in_double_precision() -> None:
    found: list[Choice] = []

    def traced(x: jax.Array) -> jax.Array:
        found.append(choose("auto"))
        return x

    jax.eval_shape(traced, 1.0)
    with jax.enable_x64(True):
        found.append(choose("auto"))
    assert found == [CHOICE, CHOICE]


def test_what_building_needs_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(library, "_version", lambda package: None)
        with pytest.raises(UserError, match="onednn-cpu-gomp and onednn-devel-cpu-gomp not installed: pip install"):
            library.build()
    if library._version(library.WHEEL) is None:
        pytest.skip("the wheel of oneDNN is not installed: pip install -e '.[cpu]'")
    monkeypatch.setattr(library, "path", lambda: tmp_path / "new" / "shim.so")
    with pytest.raises(UserError, match="there is no C.. compiler 'no-such-compiler'"):
        library.build("no-such-compiler")
    (tmp_path / "compiler").write_text("#!/bin/sh\necho 'shim.cpp:1: error: something is wrong' >&2; exit 1\n")
    (tmp_path / "compiler").chmod(0o755)
    with pytest.raises(UserError, match=r"could not compile shim.cpp: .*something is wrong"):
        library.build(str(tmp_path / "compiler"))
    monkeypatch.setattr(library, "_file", lambda package, ending: tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_the_command_says_what_it_did_and_what_it_cannot(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from covidjax.ops.__main__ import main  # noqa: PLC0415

    def absent() -> Path:
        raise UserError("there is no C++ compiler")

    monkeypatch.setattr(library, "path", lambda: Path("none.so"))
    monkeypatch.setattr(library, "build", absent)
    assert main(["--optional"]) == 0
    assert main([]) == 2
    assert main(["--other"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "native operations are not there: there is no C++ compiler"
    assert lines[1] == "error: there is no C++ compiler" and "--optional" in lines[2]


def _runtime(name: str) -> Path | None:
    try:
        told = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return Path(told.strip()) if Path(told.strip()).is_absolute() else None


def run_tests_with(flags: tuple[str, ...], library_at: Path, profile: str = "thorough", **variables: str) -> None:
    """The tests of the operations pass, on a shim that is compiled with more flags; profile: of hypothesis."""
    script = f"""
import sys
from pathlib import Path
import pytest
from covidjax.ops.native import library
library.path = lambda: Path({str(library_at)!r})
library.build("g++", (*library.FLAGS, *{flags!r}))
tests = ["tests/ops/test_native.py", "tests/ops/test_batch_norm.py"]
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *tests, "--hypothesis-profile={profile}"]))
"""
    done = python(script, **variables)
    assert done.returncode == 0 and "passed" in done.stdout, (done.stdout + done.stderr)[-4000:]
    assert "skipped" not in done.stdout, done.stdout


@needs_native
@pytest.mark.slow
def test_the_operations_pass_their_tests_under_the_sanitizers(tmp_path: Path) -> None:
    sanitizers = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    runtimes = [_runtime("libasan.so"), _runtime("libstdc++.so")]  # the first looks for what the second throws with
    if None in runtimes:
        pytest.skip("g++ has no address sanitizer here")
    options = {"ASAN_OPTIONS": "detect_leaks=0:protect_shadow_gap=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    options["LD_PRELOAD"] = " ".join(map(str, runtimes))  # Python's own leaks are not ours
    run_tests_with(sanitizers, tmp_path / "shim.so", profile="few", **options)


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("missing", ["", "avx512f", "avx"])
def test_the_operations_pass_their_tests_of_many_examples_on_narrower_vectors(missing: str, tmp_path: Path) -> None:
    """As on this processor, on those without AVX-512, and without AVX."""
    if missing and missing not in Path("/proc/cpuinfo").read_text().split():
        pytest.skip(f"this processor has no {missing} anyway: its own shim is the one in question")
    run_tests_with((f"-mno-{missing}",) if missing else (), tmp_path / "shim.so")


THREADS = """
import os, sys
if sys.argv[1] == "one processor":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax, jax.numpy as jnp
from covidjax.ops.convolution import PLAIN
from covidjax.ops.by_platform import Geometry
from covidjax.ops.native import library
from covidjax.ops.native.convolution import NATIVE, NATIVE_WINOGRAD
geometry = Geometry((8, 16, 16, 32), (3, 3, 32, 32), (1, 1), ((1, 1), (1, 1)), (1, 1))
arrays = jnp.ones(geometry.inputs), jnp.ones(geometry.kernel)
jax.block_until_ready(PLAIN.outputs(*arrays, geometry))  # XLA has its threads
assert not library.load(library.path())
before = len(os.listdir("/proc/self/task"))
for way in (NATIVE, NATIVE_WINOGRAD):
    jax.block_until_ready(way.outputs(*arrays, geometry))
print("more threads:", len(os.listdir("/proc/self/task")) - before)
"""


@needs_native
def test_nested_settings_of_threads_divide_a_map_as_well() -> None:
    """Within a parallel region OpenMP answers for a nested one, which has more threads here."""
    script = """
import jax, jax.numpy as jnp
from covidjax.ops.choose import choose
from covidjax.ops.batch_norm import batch_norm
assert choose("native").native
inputs, ones = jax.random.normal(jax.random.key(0), (999, 64)), jnp.ones(64)
ours, xlas = (batch_norm(inputs, ones, ones, 0 * ones, 1e-3, native=own)[0] for own in (True, False))
assert jnp.abs(ours - xlas).max() < 1e-5
"""
    done = python(script, OMP_NUM_THREADS="1,4")
    assert done.returncode == 0, done.stderr


@needs_native
@pytest.mark.parametrize(
    ("setting", "variables", "more", "policy"),
    [
        pytest.param("", {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "active"}, 2, "ACTIVE", marks=pytest.mark.slow),
        ("one processor", {}, 0, "PASSIVE"),
    ],
)
def test_threads_are_those_of_the_affinity_or_of_the_variables_and_sleep_unless_the_user_says_otherwise(
    setting: str, variables: dict[str, str], more: int, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("OMP_")]:
        monkeypatch.delenv(name)
    done = python(THREADS, setting, OMP_DISPLAY_ENV="true", **variables)  # libgomp tells its settings
    assert f"more threads: {more}\n" in done.stdout, done.stdout + done.stderr[-2000:]
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr


# ---- Several devices, of one process and of two ----

DIVIDED = """
import sys
from functools import partial
import jax
from jax.sharding import NamedSharding, PartitionSpec as P
address, number = sys.argv[1:]
if address:
    jax.distributed.initialize(address, num_processes=2, process_id=int(number))
from covidjax.ops.choose import choose
from tests.ops.test_native import ARGUMENTS, loss, normal
from tests.support import assert_close
assert choose("native").native
count = jax.device_count()
assert count == (2 if address else 4)
mesh = jax.make_mesh((count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
whole, parted, inputs = NamedSharding(mesh, P()), NamedSharding(mesh, P("data")), normal(8, 16, 16, 5)
batch = jax.make_array_from_callback(inputs.shape, parted, lambda part: inputs[part])
step = jax.jit(jax.value_and_grad(partial(loss, native=True)), in_shardings=(whole, parted), out_shardings=whole)
text = step.lower(ARGUMENTS, batch).compile().as_text()
assert "covidjax_convolution_" in text and f"f32[{8 // count},16,16,5]" in text
assert "all-gather" not in text and "all-reduce" in text, text
found = step(ARGUMENTS, batch)
with jax.default_device(jax.local_devices()[0]):
    assert_close(found, jax.jit(jax.value_and_grad(partial(loss, native=False)))(ARGUMENTS, inputs), 2e-5)
if not address:
    of_part, parts = jax.grad(partial(loss, native=True)), inputs.reshape(4, 2, 16, 16, 5)
    mapped, single = jax.pmap(of_part, in_axes=(None, 0))(ARGUMENTS, parts), jax.jit(of_part)
    for place, part in enumerate(parts):
        assert_close(jax.tree.map(lambda leaf: leaf[place], mapped), single(ARGUMENTS, part), 2e-5)
print("divided as it should be")
"""


def check_division(address: str, count: int, devices: int) -> None:
    """Runs the check in so many processes at once, each with so many devices."""
    command = [sys.executable, "-c", DIVIDED, address]
    options: dict[str, Any] = {"cwd": ROOT, "env": os.environ | on_devices(devices), "text": True}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = [subprocess.Popen([*command, str(number)], **options) for number in range(count)]
    try:
        for process in running:
            told, errors = process.communicate(timeout=180)
            assert "divided as it should be" in told, errors[-3000:]
    finally:
        for process in running:
            process.kill()


@needs_native
def test_devices_that_share_a_batch_each_convolve_their_part_and_gather_nothing() -> None:
    check_division("", count=1, devices=4)


@needs_native
@pytest.mark.slow
def test_processes_that_share_a_batch_do_the_same() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    check_division(address, count=2, devices=1)
