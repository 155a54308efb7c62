"""What strategies cost on devices that are not here, by programs that a compiler of the test makes up."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from covidjax.config import to_json
from covidjax.errors import UserError
from covidjax.runs import targets
from covidjax.targets import Program, Target, compiler, target_of
from covidjax.targets.program import FRACTION
from launch import freeze
from tests.commands import call, refusal
from tests.support import small_config
from tests.targets.test_hlo import TPU

SMALL = ["--config=configs/cxr3.py:cnn", "--config.model.width=2", "--config.model.num_blocks=2", "--classes=3"]
LIMIT = 20  # images that fit a device


class Compiler:
    """Programs that grow with the batch a device."""

    asked: list[dict[str, Any]] = []  # noqa: RUF012 - cleared by each test

    def __init__(self, target: Target) -> None:
        self.target = target

    def program(self, builder: str, waiting: Callable[[float], None], **arguments: Any) -> Program:
        self.asked.append(arguments)
        batch = arguments["config"]["batch_size"] // self.target.devices
        memory = {"temp": 16 * 2**30 // LIMIT * batch, "argument": 0, "output": 0, "alias": 0, "generated_code": 0}
        return Program(self.target, TPU, memory, None, 1.0, "", False)

    def __enter__(self) -> "Compiler":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FRACTION, raising=False)
    monkeypatch.setattr(targets, "Compiler", Compiler)
    Compiler.asked.clear()


def run(path: Path, *arguments: str) -> dict[str, Any]:
    assert call(freeze.main, *SMALL, *arguments, f"--json={path}") == 0
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_each_strategy_has_the_figures_of_its_program_and_the_floor_is_called_predicted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = run(
        tmp_path / "f.json", "--target=v5e:2x2", "--strategies=none,until:block1", "--config.precision=bfloat16"
    )
    assert [row["strategy"] for row in found["strategies"]] == ["none", "until:block1", "cached:until:block1"]
    row = found["strategies"][0]
    assert (row["batch_per_device"], row["fits"], row["all_reduces"], row["convolutions"]) == (8, True, 1, 1)
    assert row["predicted_images_per_s"] == pytest.approx(32 / row["predicted_ms_floor"] * 1e3)
    assert row["largest_batch_per_device"] is None
    printed = capfd.readouterr().out
    assert "predicted floor" in printed and "nothing is measured" in printed


def test_the_largest_batch_is_found_for_each_strategy(tmp_path: Path) -> None:
    found = run(tmp_path / "f.json", "--target=v5e:2x2", "--strategies=none", "--largest_batch")
    assert [row["largest_batch_per_device"] for row in found["strategies"]] == [LIMIT]


def test_remat_is_chosen_where_a_program_does_not_fit_without_it(tmp_path: Path) -> None:
    for batch, wanted in ((LIMIT, ["none"]), (LIMIT + 1, ["none", "lean"])):
        Compiler.asked.clear()
        flags = ("--target=v5e:1x1", "--strategies=none", "--config.remat=auto", f"--config.batch_size={batch}")
        run(tmp_path / "f.json", *flags)
        asked = [each["config"]["remat"] for each in Compiler.asked]
        assert asked[: len(wanted)] == wanted


def test_what_remat_saves_stands_beside_what_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    own = Compiler.program

    def program(self: Compiler, builder: str, waiting: Callable[[float], None], **arguments: Any) -> Program:
        found = own(self, builder, waiting, **arguments)
        if arguments["config"]["remat"] == "none":
            return found
        return dataclasses.replace(found, memory={**found.memory, "temp": found.memory["temp"] // 2})

    monkeypatch.setattr(Compiler, "program", program)
    run(tmp_path / "f.json", "--target=h200", "--strategies=none", "--config.remat=lean", "--config.batch_size=2")
    text = "remat of lean, none: 819 of 1,638 MiB of temporary memory less, and 0.00 GB (0%) more through memory"
    assert text in capfd.readouterr().out


def test_a_batch_that_does_not_divide_is_that_of_each_device_and_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = run(tmp_path / "f.json", "--target=v5p:8x8x8", "--strategies=backbone")
    assert [row["batch_per_device"] for row in found["strategies"]] == [32, 32]
    assert {asked["config"]["batch_size"] for asked in Compiler.asked} == {32 * 512}
    assert "config.batch_size 32 does not divide over 512 devices" in capfd.readouterr().out


def test_the_step_that_is_compiled_is_that_of_the_config_and_the_strategy() -> None:
    config = small_config("cnn", batch_size=4, dataset__image_size=32, model__width=2, model__num_blocks=2)
    texts = {
        strategy: targets.lowered(jax.local_devices(), to_json(config), 3, strategy, False).as_text()
        for strategy in ("none", "backbone")
    }
    convolutions = {strategy: text.count("stablehlo.convolution") for strategy, text in texts.items()}
    assert convolutions["backbone"] < convolutions["none"]


def test_without_compilers_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(targets, "Compiler", compiler.Compiler)
    monkeypatch.setattr(compiler, "ROOT", tmp_path)
    monkeypatch.delenv(compiler.VARIABLE, raising=False)
    message = refusal(capfd, freeze.main, *SMALL, "--target=h200", "--strategies=none")
    assert message.startswith("programs for h200 are compiled in .venv-targets, which is not there: `make targets`")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target=h300"], "there is no target 'h300': allowed are "),
        (["--largest_batch"], "--largest_batch needs --target"),
    ],
)
def test_what_is_no_target_is_refused(arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert message in refusal(capfd, freeze.main, *SMALL, *arguments)


def test_a_share_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FRACTION, "most")
    with pytest.raises(UserError, match="XLA_PYTHON_CLIENT_MEM_FRACTION is 'most'"):
        targets.usable_bytes(target_of("h200"))
