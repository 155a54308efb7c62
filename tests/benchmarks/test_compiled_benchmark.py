"""Programs for devices that are not here, as records; what cannot be compiled is refused or said."""

import dataclasses
from pathlib import Path

import jax
import pytest

from benchmarks import charts, compiled, programs
from benchmarks.case import Case
from covidjax.errors import UserError
from covidjax.targets import Program, target_of
from tests.targets.test_hlo import TPU

MEMORY = {"temp": 10**9, "argument": 2 * 10**8, "output": 0, "alias": 0, "generated_code": 0}
FIELDS = {  # of the design
    *("model", "impl", "freeze", "precision", "batch_per_device", "image_size", "target", "devices", "flops"),
    *("bytes_accessed", "temp_bytes", "argument_bytes", "all_reduces", "all_reduce_bytes", "convolutions", "kernels"),
    *("compile_s", "predicted_ms_floor"),
}


def record(implementation: str, strategy: str, refused: str = "") -> dict[str, object]:
    target = target_of("v5e:2x2")
    case = Case(implementation, "resnet50", strategy, "bfloat16", 4 * 32)
    program = Program(target, "" if refused else TPU, {} if refused else MEMORY, None, 3.0, refused, False)
    return {**compiled.make_record(case, target, program), "date": "2026-01-01T00:00:00"}


def test_a_record_has_the_figures_of_one_device() -> None:
    row = record("covidjax", "none")
    assert set(row) >= FIELDS
    assert (row["batch_per_device"], row["devices"], row["temp_bytes"], row["all_reduces"]) == (32, 4, 10**9, 1)


def test_a_program_that_the_compiler_refuses_has_no_figures_and_does_not_fit() -> None:
    row = record("covidjax", "none", refused="RESOURCE_EXHAUSTED")
    assert (row["fits"], row["bytes_accessed"], row["predicted_ms_floor"]) == (False, None, None)
    assert "no" in compiled.table([row])


def test_the_chart_has_a_bar_for_each_program(tmp_path: Path) -> None:
    rows = [record(name, strategy) for strategy in ("none", "backbone") for name in ("covidjax", "flax")]
    charts.compiled(tmp_path / "chart.png", rows)
    assert (tmp_path / "chart.png").stat().st_size > 10_000


def test_the_operation_that_moves_most_is_named_first() -> None:
    program = Program(target_of("v5e:2x2"), TPU, MEMORY, None, 3.0, "", False)
    lines = compiled.profile(program).splitlines()
    assert lines[1].split()[2:] == ["fusion", "jit(step)/params['conv']"]


def test_what_a_peer_has_not_is_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    flags = compiled.parse(["--target=h200", "--model=cnn", "--image_size=16", "--strategies=norm", "--peers=flax"])
    assert [case.implementation for case in compiled.cases_of(flags)] == ["covidjax"]
    assert "left out: flax cnn: freeze is 'norm'" in capsys.readouterr().err


def test_variants_are_steps_of_covidjax_under_names_of_their_own() -> None:
    variants = compiled.VARIANTS
    flags = compiled.parse(["--target=h200", "--strategies=none", f"--peers={','.join(variants)}"])
    cases = compiled.cases_of(flags)
    assert [compiled.name_of(case) for case in cases] == ["covidjax", *variants]
    assert [case.options for case in cases] == [(), *((option,) for option in variants.values())]
    assert {case.implementation for case in cases} == {"covidjax"}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--target=h300", "there is no target 'h300'"),
        (
            "--peers=torch",
            "there is no peer 'torch': allowed are covidjax_lean, covidjax_own_statistics, covidjax_fsdp4,",
        ),
        ("--strategies=until:layer9", "there is no stage 'layer9'"),
    ],
)
def test_what_cannot_be_compiled_is_refused(argument: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compiled.cases_of(compiled.parse(["--target=h200", argument]))


def test_options_of_a_case_reach_the_recipe() -> None:
    case = Case("covidjax", "cnn", "none", "float32", 4, 16, options=(("remat", "lean"),), width=4)
    texts = [
        programs.covidjax(jax.local_devices(), **dataclasses.asdict(each)).as_text()
        for each in (case, dataclasses.replace(case, options=()))
    ]
    assert texts[0].count("stablehlo.convolution") == texts[1].count("stablehlo.convolution")
    assert texts[0].count("optimization_barrier") > texts[1].count("optimization_barrier")


@pytest.mark.parametrize("name", ["covidjax", "flax", "flax_norm_logged"])
def test_a_step_is_lowered_from_shapes_over_the_devices_of_a_target(name: str) -> None:
    case = Case(name, "cnn", "backbone", "bfloat16", 4, 16, width=4)
    lowered = getattr(programs, name)(jax.local_devices(), **dataclasses.asdict(case))
    assert "tensor<4x16x16x1xui8>" in lowered.as_text()
