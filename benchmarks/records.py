"""Measurements as records: the rows of the JSON, the CSV and the printed table."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.case import Case
from benchmarks.harness import Measurement
from covidjax import files

Record = dict[str, Any]
REFERENCE = "covidjax"


def make(
    measurements: Sequence[Measurement], ceilings: Mapping[str, float], environment: Mapping[str, Any]
) -> list[Record]:
    """One record a measurement. ceilings: FLOP/s by precision; environment: the fields that all of a run share."""
    records = [_record(measurement, ceilings, environment) for measurement in measurements]
    for record, measurement in zip(records, measurements, strict=True):
        _relate(record, measurement, records, measurements)
    return records


def split_ceilings(measurements: Sequence[Measurement]) -> tuple[list[Measurement], dict[str, float]]:
    """The measurements but those of matrix products, and of these the best rate by precision, in FLOP/s."""
    steps: list[Measurement] = []
    ceilings: dict[str, float] = {}
    for measurement in measurements:
        case = measurement.case
        if not case.implementation.startswith("matmul"):
            steps.append(measurement)
        elif measurement.step_seconds:
            rate = measurement.facts["flops"] / statistics.median(measurement.step_seconds)
            ceilings[case.precision] = max(rate, ceilings.get(case.precision, 0.0))
    return steps, ceilings


def absent(case: Case, reason: str, environment: Mapping[str, Any]) -> Record:
    """The record of an implementation that could not run: the same fields, and why."""
    return make([Measurement(case, error=reason)], {}, environment)[0]


def _record(measurement: Measurement, ceilings: Mapping[str, float], environment: Mapping[str, Any]) -> Record:
    case, facts, seconds = measurement.case, measurement.facts, measurement.step_seconds
    median = statistics.median(seconds) if seconds else None
    flops = facts.get("flops")
    rate = flops / median if flops and median else None
    ceiling = ceilings.get(case.precision)
    return {
        "model": case.model,
        "impl": case.implementation,
        "freeze": case.freeze,
        "precision": case.precision,
        "batch_size": case.batch_size,
        "image_size": case.image_size,
        "mode": case.mode,
        "width": case.width,
        "ops": facts.get("ops", case.ops) if case.implementation == REFERENCE else "",
        **{name: value for name, value in case.options},
        "device": facts.get("device"),
        "step_ms_median": _milliseconds(median),
        "step_ms_p10": _milliseconds(percentile(seconds, 0.1)),
        "step_ms_p90": _milliseconds(percentile(seconds, 0.9)),
        "images_per_s": case.batch_size / median if median else None,
        "compile_s": facts.get("compile_seconds"),
        "flops_per_step": flops,
        "flops_per_second": rate,
        "matmul_flops_per_second": ceiling,
        "share_of_matmul_ceiling": rate / ceiling if rate and ceiling else None,
        "trainable_params": facts.get("trainable_params"),
        "total_params": facts.get("total_params"),
        "optimizer_bytes": facts.get("optimizer_bytes"),
        "temp_bytes": facts.get("temp_bytes"),
        "peak_bytes": facts.get("peak_bytes"),
        "n_samples": len(seconds),
        "dropped": measurement.dropped,
        "foreign_use_checked": measurement.foreign_checked,
        "steps_per_sample": measurement.steps_per_sample,
        "threads": facts.get("threads"),
        "allocator": facts.get("allocator"),
        "framework": facts.get("versions"),
        "error": measurement.error,
        **environment,
    }


def _relate(
    record: Record, measurement: Measurement, records: Sequence[Record], measurements: Sequence[Measurement]
) -> None:
    """Ratios to the same implementation with nothing frozen, and of covidjax at the same work to this one."""
    pairs = list(zip(records, measurements, strict=True))
    own, case = record["step_ms_median"], measurement.case
    same_work = [(other, m.case) for other, m in pairs if m.case.work() == case.work()]
    alike = (case.implementation, case.ops, case.options)
    unfrozen = [o for o, c in same_work if (c.implementation, c.ops, c.options) == alike and c.freeze == "none" and own]
    ours = [o for o, c in same_work if c.implementation == REFERENCE and c.freeze == case.freeze and own]
    record["speedup_vs_none"] = _ratio(unfrozen[0]["step_ms_median"], own) if unfrozen else None
    record["flops_ratio_vs_none"] = (
        _ratio(record["flops_per_step"], unfrozen[0]["flops_per_step"]) if unfrozen else None
    )
    record["covidjax_speedup"] = _ratio(own, ours[0]["step_ms_median"]) if ours else None
    record["temp_bytes_ratio_to_covidjax"] = _ratio(record["temp_bytes"], ours[0]["temp_bytes"]) if ours else None


def percentile(values: Sequence[float], fraction: float) -> float | None:
    """By linear interpolation between the sorted values; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator and denominator else None


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def write_json(path: Path, records: Sequence[Record]) -> None:
    """A list of records. Raises UserError where the file cannot be written."""
    files.write_json(path, list(records))


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """One row a record under a line '# command' with what made it; fields that are objects as 'name=value; ...'."""
    names = list(dict.fromkeys(name for record in records for name in record if name != "command"))
    text = io.StringIO()
    text.write(f"# {records[0].get('command', '')}\n")
    writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for record in records:
        writer.writerow({name: _cell(record.get(name)) for name in names})
    files.write_text(path, text.getvalue())


def _cell(value: Any) -> Any:
    if isinstance(value, Mapping):
        return "; ".join(f"{name}={item}" for name, item in value.items())
    return f"{value:.6g}" if isinstance(value, float) else value


TABLE = (
    ("implementation", lambda r: r["impl"] + (f" {r['ops']}" if r["ops"] else ""), "<"),
    ("freeze", lambda r: r["freeze"], "<"),
    ("median ms", lambda r: _number(r["step_ms_median"], ".1f"), ">"),
    ("p10", lambda r: _number(r["step_ms_p10"], ".1f"), ">"),
    ("p90", lambda r: _number(r["step_ms_p90"], ".1f"), ">"),
    ("samples", lambda r: f"{r['n_samples']}" + (f" (-{r['dropped']})" if r["dropped"] else ""), ">"),
    ("images/s", lambda r: _number(r["images_per_s"], ".1f"), ">"),
    ("covidjax is", lambda r: _number(r["covidjax_speedup"], ".2f", "x"), ">"),
    ("GFLOP/s", lambda r: _number(r["flops_per_second"], ".0f", scale=1e-9), ">"),
    ("of matmul", lambda r: _number(r["share_of_matmul_ceiling"], ".0f", " %", 100), ">"),
    ("compile s", lambda r: _number(r["compile_s"], ".1f"), ">"),
    ("temporary MB", lambda r: _number(r["temp_bytes"], ".0f", scale=1e-6), ">"),
    ("peak MB", lambda r: _number(r["peak_bytes"], ".0f", scale=1e-6), ">"),
)


def table(records: Sequence[Record]) -> str:
    """The records as text, a block for each piece of work."""
    blocks: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        key = tuple(record[name] for name in ("model", "precision", "batch_size", "image_size", "mode"))
        blocks.setdefault(key, []).append(record)
    return "\n\n".join(_block(key, rows) for key, rows in blocks.items())


def _block(key: tuple[Any, ...], rows: Sequence[Record]) -> str:
    model, precision, batch_size, image_size, mode = key
    cells = [[title for title, _, _ in TABLE], *([cell(row) for _, cell, _ in TABLE] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            f"{text:{align}{width}}" for text, width, (_, _, align) in zip(line, widths, TABLE, strict=True)
        ).rstrip()
        for line in cells
    ]
    failed = [f"{row['impl']}: {row['error']}" for row in rows if row["error"]]
    return "\n".join([f"{model}, {mode}, {precision}, batch {batch_size}, {image_size} px", *lines, *failed])


def _number(value: float | None, form: str, unit: str = "", scale: float = 1.0) -> str:
    return "-" if value is None else f"{value * scale:{form}}{unit}"
