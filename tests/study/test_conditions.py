"""The verdict of a study and its page, from runs that were made up."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from covidjax.report import formats
from covidjax.study import conditions as study_conditions
from covidjax.study import page
from covidjax.study.conditions import Condition, Verdict
from covidjax.study.results import Result
from covidjax.tasks.base import Task
from covidjax.tasks.classification import CLASSIFICATION
from tests.report import made_workdir
from tests.report.made_workdir import Page
from tests.study.made import ARMS, make_result, make_study

SEEDS = (0, 1, 2)


def conditions_of(
    accuracies: dict[str, list[float]], seconds: dict[str, float], task: Task = CLASSIFICATION
) -> list[Condition]:
    """Those of a study whose strategies have these accuracies by seed, and take so long."""
    study = make_study(Path("study"), tuple(accuracies), seeds=range(len(next(iter(accuracies.values())))))
    results = [
        make_result(t, val_accuracy=accuracies[t.strategy][t.seed], cost_seconds=seconds[t.strategy])
        for t in study.trials()
    ]
    return [dataclasses.replace(each, task=task) for each in study_conditions.make_conditions(study, results)]


def judged(accuracies: dict[str, list[float]], seconds: dict[str, float]) -> Verdict:
    return study_conditions.judge(conditions_of(accuracies, seconds))


def label(condition: Condition | None) -> str:
    assert condition is not None
    return condition.label


def test_chosen_is_the_cheapest_that_is_not_significantly_worse_paired_by_seed() -> None:
    accuracies = {
        "none": [0.80, 0.85, 0.90],
        "until:layer3": [0.81, 0.83, 0.89],  # a little worse, within what seeds do
        "backbone": [0.78, 0.831, 0.879],  # worse with every seed by about as much
    }
    verdict = judged(accuracies, {"none": 100.0, "until:layer3": 40.0, "backbone": 1.0})
    assert (label(verdict.best), label(verdict.chosen)) == ("none", "until:layer3")
    found = {condition.label: difference for condition, difference in verdict.differences.items()}
    assert found.keys() == {"until:layer3", "backbone"}
    for name, difference in found.items():
        assert difference.p == pytest.approx(stats.ttest_rel(accuracies[name], accuracies["none"]).pvalue)
    assert found["backbone"].is_worse(1)
    assert not found["until:layer3"].is_worse(1)
    assert "“until:layer3”" in verdict.sentence
    assert "paired over 3 seeds" in verdict.sentence


WORSE = {"none": [0.80, 0.85, 0.90], "backbone": [0.70, 0.751, 0.801]}


@pytest.mark.parametrize(
    ("accuracies", "seconds", "sentence"),
    [
        (WORSE, {"none": 9, "backbone": 1}, "every cheaper strategy is significantly worse"),
        (WORSE, {"none": 1, "backbone": 9}, "it is the cheapest as well"),
        ({"none": [0.80], "backbone": [0.79]}, {"none": 9, "backbone": 1}, "With 1 seed nothing can be said about"),
        (
            {"none": [0.80, 0.82], "backbone": [0.50, 0.79]},
            {"none": 9, "backbone": 1},
            "With 2 seeds nothing can be said about significance: give at least three",
        ),
    ],
)
def test_best_is_chosen_where_nothing_cheaper_is_known_to_be_as_good(
    accuracies: dict[str, list[float]], seconds: dict[str, float], sentence: str
) -> None:
    verdict = judged(accuracies, seconds)
    assert verdict.chosen is verdict.best
    assert label(verdict.best) == "none"
    assert sentence in verdict.sentence


def failed(result: Result) -> Result:
    return dataclasses.replace(result, status="failed", message="<not> finite", figures={}, curves={})


def test_strategy_with_a_failed_run_is_left_out_of_the_verdict(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    results = [make_result(trial) for trial in study.trials()]
    before = study_conditions.judge(study_conditions.make_conditions(study, results))
    broken = [failed(r) if (r.trial.strategy, r.trial.seed) == (label(before.best), 1) else r for r in results]
    after = study_conditions.judge(study_conditions.make_conditions(study, broken))
    assert label(after.best) != label(before.best)
    assert f"Left out, as not every run finished: “{label(before.best)}”" in after.sentence
    nothing = study_conditions.judge(study_conditions.make_conditions(study, list(map(failed, results))))
    assert (nothing.best, nothing.chosen) == (None, None)


def test_front_holds_what_no_other_surpasses_at_no_more_cost() -> None:
    accuracies = dict(zip(ARMS, ([0.9], [0.9], [0.7], [0.6], [0.5]), strict=True))
    conditions = conditions_of(accuracies, dict(zip(ARMS, (100, 50, 20, 30, 1), strict=True)))
    front = study_conditions.pareto_front(conditions, "cost_seconds")
    assert [condition.label for condition in front] == ["backbone", "until:layer3", "until:layer2"]


def test_task_whose_figure_is_best_when_low_is_judged_by_its_lowest() -> None:
    task = dataclasses.replace(CLASSIFICATION, best={"accuracy": -1})
    errors = {"none": [0.10, 0.15, 0.20], "until:layer3": [0.11, 0.13, 0.19], "backbone": [0.15, 0.201, 0.249]}
    seconds = {"none": 100.0, "until:layer3": 40.0, "backbone": 1.0}
    conditions = conditions_of(errors, seconds, task)
    verdict = study_conditions.judge(conditions)
    assert (label(verdict.best), label(verdict.chosen)) == ("until:layer3", "until:layer3")
    assert "has the lowest mean validation accuracy, 0.143 over 3 seeds; every cheaper strategy is" in verdict.sentence
    front = study_conditions.pareto_front(conditions, "cost_seconds")
    assert [condition.label for condition in front] == ["backbone", "until:layer3"]


def write_page(tmp_path: Path, results: list[Result], study: Any) -> tuple[Page, Verdict, str]:
    conditions = study_conditions.make_conditions(study, results)
    verdict = study_conditions.judge(conditions)
    content = page.write(study, results, conditions, verdict).read_text(encoding="utf-8")
    return Page(content), verdict, content


def test_page_needs_nothing_outside_itself_and_shows_the_figures_of_the_study(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    results = [make_result(trial) for trial in study.trials()]
    results[0] = failed(results[0])
    read, verdict, content = write_page(tmp_path, results, study)
    made_workdir.assert_self_contained(content)
    assert content.count("data:image/svg+xml") == 1 + 2 * len(ARMS)
    assert "<not> finite" in read.text
    assert "\N{LEFT DOUBLE QUOTATION MARK}backbone\N{RIGHT DOUBLE QUOTATION MARK}: warning: 9 of 10" in read.text
    assert "not" not in {tag for tag, _ in read.tags}

    assert verdict.sentence in read.text
    shown = {row[0]: row for row in read.table("Strategy", "SD")[1:]}
    costs = {row[0]: row for row in read.table("Strategy", "Memory of a step")[1:]}
    assert shown.keys() == costs.keys() == ARMS.keys()
    for condition in study_conditions.make_conditions(study, results):
        accuracy, row = condition.over_seeds("val_accuracy"), shown[condition.label]
        whole = condition.label != results[0].trial.strategy
        assert row[1] == ("3 of 3" if whole else "2 of 3")
        assert row[2] == f"{accuracy.mean:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}]"
        assert row[3] == f"{accuracy.deviation:.3f}"
        if whole and label(verdict.best) != condition.label:
            difference = next(d for other, d in verdict.differences.items() if other.label == condition.label)
            assert row[4].startswith(formats.signed(difference.mean))
        assert costs[condition.label][-1] == f"{ARMS[condition.label][3]:,}"
        seconds = condition.values("total_seconds")
        if whole:
            assert costs[condition.label][4] == formats.percent(ARMS[condition.label][1] / ARMS["none"][1])
            told = [formats.duration(seconds[0]), formats.duration((seconds[1] + seconds[2]) / 2)]
            assert costs[condition.label][5:7] == told
    assert [row[0] for row in read.table("Run", "Status")[1:]] == [trial.name for trial in study.trials()]


def test_test_split_of_other_runs_than_the_chosen_is_pointed_out(tmp_path: Path) -> None:
    study = make_study(tmp_path, ("until:layer3", "backbone"), seeds=SEEDS)
    results = [make_result(trial) for trial in study.trials()]
    read, verdict, _ = write_page(tmp_path, results, study)
    assert "Not read for the chosen strategy" in read.text
    test = {"accuracy": 0.8125, "accuracy_ci95": [0.75, 0.875], "loss": 0.5}

    def evaluated(strategy: str) -> list[Result]:
        changes: dict[str, Any] = {"test": test, "test_reads": ("2026-11-20T12:00:00+00:00",)}
        return [dataclasses.replace(r, **changes if r.trial.strategy == strategy else {}) for r in results]

    read = write_page(tmp_path, evaluated(label(verdict.chosen)), study)[0]
    assert [row[1] for row in read.table("Run", "Read at")[1:-1]] == ["0.812 [0.750, 0.875]"] * 3
    assert "also read for other runs" not in read.text
    other = next(name for name in study.strategies if name != label(verdict.chosen))
    assert f"also read for other runs: {other}_lr0.001_seed0" in write_page(tmp_path, evaluated(other), study)[0].text
