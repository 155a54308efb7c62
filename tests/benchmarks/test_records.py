import json
from pathlib import Path

import pytest

from benchmarks import charts, operations, records
from benchmarks.case import Case
from benchmarks.harness import Measurement
from tests.commands import read_table

FIELDS = """
    model impl freeze precision batch_size image_size device step_ms_median step_ms_p10 step_ms_p90
    images_per_s compile_s flops_per_step trainable_params total_params optimizer_bytes temp_bytes peak_bytes
    speedup_vs_none flops_ratio_vs_none
"""
CONTRACT = set(FIELDS.split())  # design, section 5
SHARED = {"command": "python benchmarks/x.py --model='a, b'", "date": "2026-11-20T12:00:00+00:00", "cpu": "a CPU"}
HLO = """
  %fused.1 = f32[8,4]{1,0} add(%a, %b)
  %convolution.3 = f32[8,56,56,64]{3,2,1,0:T(8)} convolution(%x, %w), window={size=3x3}, metadata={op_name="jit(step)/jit(main)/transpose(jvp(ResNet))/layer1/block1/conv1/conv_general_dilated" source_file="x.py"}
  %ffi_call.2 = (f32[2,4]{1,0}, f32[4]{0}) custom-call(%x, %s), custom_call_target="norm", metadata={op_name="jit(step)/stem/norm1"}
  ROOT %tuple = (f32[], f32[3]) tuple(%c, %d)
"""  # noqa: E501 - a line of HLO


def measurement(implementation: str, seconds: list[float], freeze: str = "none", flops: float = 4e9) -> Measurement:
    facts = {"flops": flops, "temp_bytes": 10, "device": "cpu", "platform": "cpu", "compile_seconds": 1.5}
    case = Case(implementation, "cnn", freeze, batch_size=8)
    return Measurement(case, facts, seconds, dropped=2, steps_per_sample=3)


def test_a_record_has_the_fields_of_the_contract_and_exact_figures_beside_the_best_product() -> None:
    products = [measurement("matmul_jax", [2.0]), measurement("matmul_torch", [0.04, 4.0, 0.05])]
    steps, ceilings = records.split_ceilings([*products, measurement("covidjax", [0.1, 0.2, 0.3, 0.4, 0.5])])
    assert ceilings == {"float32": pytest.approx(4e9 / 0.05)}
    (record,) = records.make(steps, {"float32": 1e11}, SHARED)
    assert set(record) >= CONTRACT
    assert record["step_ms_median"] == pytest.approx(300)
    assert (record["step_ms_p10"], record["step_ms_p90"]) == (pytest.approx(140), pytest.approx(460))
    assert record["images_per_s"] == pytest.approx(8 / 0.3)
    assert record["flops_per_second"] == pytest.approx(4e9 / 0.3)
    assert record["share_of_matmul_ceiling"] == pytest.approx(4e9 / 0.3 / 1e11)
    assert (record["impl"], record["n_samples"], record["dropped"]) == ("covidjax", 5, 2)


def test_ratios_are_to_the_same_implementation_unfrozen_and_to_covidjax_at_the_same_freeze() -> None:
    ours = measurement("covidjax", [0.2]), measurement("covidjax", [0.1], "backbone", flops=1e9)
    theirs = measurement("torch", [0.3]), measurement("torch", [0.05], "backbone")
    rows = records.make([*ours, *theirs], {}, SHARED)
    assert [row["speedup_vs_none"] for row in rows] == [1, pytest.approx(2), 1, pytest.approx(6)]
    assert [row["flops_ratio_vs_none"] for row in rows] == [1, 0.25, 1, 1]
    assert [row["covidjax_speedup"] for row in rows] == [1, 1, pytest.approx(1.5), pytest.approx(0.5)]


def test_what_was_not_measured_is_null_and_said(tmp_path: Path) -> None:
    failed = Measurement(Case("torch", "cnn"), error="out of memory")
    absent = records.absent(Case("keras", "cnn"), "keras is not installed", SHARED)
    rows = [*records.make([failed], {}, SHARED), absent]
    records.write_json(tmp_path / "f.json", rows)
    read = json.loads((tmp_path / "f.json").read_text())
    assert [row["step_ms_median"] for row in read] == [None, None]
    assert "torch: out of memory" in records.table(rows) and "keras is not installed" in records.table(rows)
    charts.bars(tmp_path / "f.png", rows)
    assert not (tmp_path / "f.png").exists()


def test_a_csv_begins_with_its_command_and_reads_back_and_a_chart_is_drawn(tmp_path: Path) -> None:
    rows = records.make([measurement("covidjax", [0.1]), measurement("torch", [0.2])], {}, SHARED)
    records.write_csv(tmp_path / "f.csv", rows)
    assert (tmp_path / "f.csv").read_text().startswith(f"# {SHARED['command']}\n")
    read = [(row["impl"], float(row["step_ms_median"])) for row in read_table(tmp_path / "f.csv")]
    assert read == [("covidjax", 100), ("torch", 200)]
    rows[1]["step_ms_p10"] *= 1 + 1e-9  # of one sample, rounded
    charts.bars(tmp_path / "f.png", rows)
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_operations_are_told_by_kind_shape_and_place_and_counted_where_not_shown() -> None:
    details = operations.details_of(HLO)
    assert details["fused.1"] == "add f32[8,4]"
    where = "backward layer1/block1/conv1/conv_general_dilated"
    assert details["ffi_call.2"] == "custom-call (f32[2,4], f32[4]) stem/norm1"
    assert details["convolution.3"] == f"convolution f32[8,56,56,64] {where}"
    found = [operations.Operation(f"op{number}", float(number)) for number in (6, 3, 1)]
    lines = operations.table(found, 2).splitlines()
    assert "60.0 %  op6" in lines[1] and "30.0 %  op3" in lines[2]
    assert "1.000" in lines[3] and "in 1 others" in lines[3]
