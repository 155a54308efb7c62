"""`launch/local.py`: several processes of one command on this machine."""

from pathlib import Path

import pytest

from covidjax.distributed.local import run_together
from launch import local
from tests.commands import call, refusal


def script(folder: Path, text: str) -> list[str]:
    path = folder / "script.py"
    path.write_text("import os, sys, time\nrank = os.environ['COVIDJAX_PROCESS']\n" + text)
    return [str(path)]


def test_each_line_has_its_process_and_devices_follow_each_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = script(tmp_path, "print(os.environ['COVIDJAX_PROCESSES'], os.environ['JAX_LOCAL_DEVICE_IDS'])")
    assert call(local.main, "--processes=3", "--devices_per_process=2", "--", *command) == 0
    lines = sorted(capfd.readouterr().out.splitlines())
    assert lines == ["[0] 3 0,1", "[1] 3 2,3", "[2] 3 4,5"]


def test_the_first_that_fails_ends_all_and_its_error_is_shown_last(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("covidjax.distributed.local.GRACE_SECONDS", 0.2)
    text = "print('about', rank, file=sys.stderr)\nif rank == '1': sys.exit('no such image')\ntime.sleep(600)"
    assert run_together(script(tmp_path, text), 2, 1) == 1
    assert capfd.readouterr().err.splitlines()[-3:] == [
        "about 1",
        "no such image",
        "process 1 was the first to end, with exit status 1",
    ]


def test_a_process_that_is_killed_is_named_with_the_signal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("covidjax.distributed.local.GRACE_SECONDS", 0.2)
    text = "if rank == '0': os.kill(os.getpid(), 9)\ntime.sleep(600)"
    assert run_together(script(tmp_path, text), 2, 1) == 137
    assert capfd.readouterr().err.endswith("process 0 was the first to end, with signal SIGKILL\n")


def test_sigterm_is_passed_on_and_the_status_is_that_of_the_processes(tmp_path: Path) -> None:
    text = (
        "import signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "os.kill(os.getppid(), signal.SIGTERM) if rank == '1' else None\ntime.sleep(600)"
    )
    assert run_together(script(tmp_path, text), 2, 1) == 143


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "there is no command"),
        (["--processes=2"], "there is no command"),
        (["--processes=0", "--", "x.py"], "whole numbers from 1 on"),
    ],
)
def test_mistakes_are_told(flags: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert said in refusal(capfd, local.main, *flags)
