"""What a machine lacks - devices, a home, a writable cache, the name of a file - is one line, or does not matter."""

import errno
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from covidjax import process
from covidjax.process import cache_dir, system_error
from launch import predict, train
from tests.commands import ROOT, call, images_of, write_images

# One process after the other for each of them would import everything again.
ASKED = """
import sys
import jax
from jax.extend.backend import clear_backends
from covidjax.command import check_backend
from covidjax.errors import UserError

for platforms in sys.argv[1:]:
    clear_backends()
    jax.config.update("jax_platforms", platforms)
    try:
        check_backend()
    except UserError as error:
        print(error)
"""
ABSENT = {
    "foo": "Backend 'foo' is not in the list of known backends",
    "cuda": "JAX has no such device here",
    "cuda,cpu": "JAX found cpu",
}


def test_devices_that_are_asked_for_and_absent_are_told_in_one_line(environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", ASKED, *ABSENT]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    for line, (platforms, reason) in zip(lines, ABSENT.items(), strict=True):
        assert line.startswith(f"JAX_PLATFORMS is '{platforms}': ")
        assert reason in line
        assert line.endswith(": unset it to take what there is, or set it to cpu")


@pytest.mark.parametrize("command", ["launch/sweep.py --learning_rates=1e-3", "-m covidjax.ops"])
def test_commands_without_the_devices_that_are_asked_for_end_with_that_line(
    tmp_path: Path, environment: dict[str, str], config: str, command: str
) -> None:
    line = [*command.split(), *([config, f"--workdir={tmp_path / 'run'}"] * command.startswith("launch"))]
    asked = {**environment, "JAX_PLATFORMS": "foo"}
    done = subprocess.run([sys.executable, *line], env=asked, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (told,) = done.stderr.splitlines()
    assert told.startswith("error: JAX_PLATFORMS is 'foo': ") and ABSENT["foo"] in told


def test_a_user_without_a_home_has_a_cache_of_his_own_among_the_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(process.tempfile, "tempdir", str(tmp_path))
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    own = tmp_path / f"covidjax-{os.getuid()}"
    assert cache_dir("") == cache_dir("") == own
    assert own.stat().st_mode & 0o77 == 0
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    (tmp_path / "covidjax-54321").mkdir()  # by another user
    assert cache_dir("") != tmp_path / "covidjax-54321"


def test_matplotlib_says_nothing_of_a_home_that_cannot_be_written(environment: dict[str, str], tmp_path: Path) -> None:
    names = ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
    bare = {name: value for name, value in environment.items() if name not in names}
    bare |= {"HOME": "/proc/nobody", "TMPDIR": str(tmp_path)}
    code = "import covidjax.study.page, matplotlib; print(matplotlib.get_cachedir())"
    done = subprocess.run([sys.executable, "-c", code], env=bare, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.strip() == str(tmp_path / f"covidjax-{os.getuid()}" / "matplotlib")


def test_no_cache_stops_a_command(
    tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root, workdir, cache = write_images(tmp_path / "images"), tmp_path / "run", tmp_path / ("x" * 300)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    frozen = ["--config.freeze=backbone", "--config.features=on", "--config.feature_views=1"]
    assert call(train.main, config, f"--workdir={workdir}", *images_of(root), *frozen) == 0
    said = capfd.readouterr().out
    assert f"no image cache: {cache}/covidjax/images cannot be written (File name too long)" in said
    assert f"features: not kept for later runs ({cache}/covidjax/features: File name too long)" in said
    assert call(predict.main, f"--workdir={workdir}", f"--images={root}", f"--output={tmp_path / 'table.csv'}") == 0


def test_an_error_of_the_system_names_its_file_or_the_function_that_met_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing") as named:
        (tmp_path / "missing").open()
    assert system_error(named.value) == f"{tmp_path / 'missing'}: No such file or directory"
    nameless = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert system_error(nameless).startswith("No space left on device (the system names no file): look for a full disk")
    with pytest.raises(OSError, match="EBADF|Bad file") as number:
        os.listdir(10_000)
    assert system_error(number.value).startswith("Bad file descriptor (the system names no file)")
    assert system_error(OSError("it broke")).startswith("it broke (the system names no file)")
