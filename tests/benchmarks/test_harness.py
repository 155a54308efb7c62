import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.case import Case
from benchmarks.harness import Protocol, measure
from benchmarks.worker import busy_ticks
from covidjax.errors import UserError

QUICK = Protocol(samples=3, min_sample_seconds=0.004, warm_up_steps=2, max_foreign_share=100.0)


def case(subject: str, log: Path, model: str = "one", **fields: Any) -> Case:
    return Case(f"tests.benchmarks.subjects:{subject}", model, options=(("log", str(log)),), **fields)


def sampled(log: Path, names: str) -> list[str]:
    """The models of the samples, in their order, after the warm-up of each."""
    return [line.split()[0] for line in log.read_text().splitlines()][2 * len(names) :]


def test_each_case_has_a_process_and_variables_of_its_own_and_takes_its_turn_in_every_round(tmp_path: Path) -> None:
    log, names, rounds = tmp_path / "log", "abc", 6
    variables = {"a": (("COVIDJAX_TEST_VARIABLE", "yes"),)}
    cases = [case("Noted", log, name, environment=variables.get(name, ())) for name in names]
    found = measure(cases, dataclasses.replace(QUICK, samples=rounds), lambda line: None)
    orders = [tuple(order) for order in np.reshape(sampled(log, names), (rounds, len(names)))]
    assert [set(order) for order in orders] == [set(names)] * rounds
    assert len(set(orders)) > 1
    assert len({measurement.facts["pid"] for measurement in found}) == 3
    assert [len(measurement.step_seconds) for measurement in found] == [rounds] * 3
    assert all(measurement.facts["peak_bytes"] == 77 for measurement in found)
    assert [measurement.facts["variable"] for measurement in found] == ["yes", None, None]


def test_disturbed_samples_are_dropped_and_counted_but_on_an_accelerator(tmp_path: Path) -> None:
    protocol = dataclasses.replace(QUICK, max_rounds=4, max_foreign_share=-1.0)
    cases = [case(subject, tmp_path / subject) for subject in ("Noted", "OnAccelerator")]
    disturbed, kept = measure(cases, protocol, lambda line: None)
    assert (disturbed.dropped, disturbed.step_seconds, disturbed.foreign_checked) == (4, [], True)
    assert (kept.dropped, len(kept.step_seconds), kept.foreign_checked) == (0, 3, False)


def test_a_failure_is_one_line_and_the_others_go_on(tmp_path: Path) -> None:
    said: list[str] = []
    cases = [case("broken", tmp_path / "1"), case("Dying", tmp_path / "2"), case("Talkative", tmp_path / "3")]
    broken, dying, talkative = measure(cases, QUICK, said.append)
    assert broken.error == "RuntimeError: broken"
    assert "status 3" in dying.error and "the last words" in dying.error
    assert not talkative.error and len(talkative.step_seconds) == 3
    assert all("\n" not in line for line in said) and sum("status 3" in line for line in said) == 1


def test_what_a_person_can_mend_ends_the_measurement(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^one is refused$"):
        measure([case("refused", tmp_path / "log")], QUICK, lambda line: None)


def test_busy_time_is_that_of_the_cores_in_use_without_idle_and_waiting() -> None:
    lines = [
        "cpu 1 1 1 1 1 1 1 1 0 0",
        "cpu0 100 20 30 5000 600 7 8 9 50 60",
        "cpu1 1 0 0 0 0 0 0 0 0 0",
        "cpu10 9 9 9 9 9 9 9 9 9 9",
    ]
    text = "\n".join(lines)
    assert busy_ticks(text, {0}) == 100 + 20 + 30 + 7 + 8 + 9
    assert busy_ticks(text, {0, 1}) == 175
    assert busy_ticks("cpu0 0 0 0 0 0 0 0 0 0 0\n", {0}) is None
