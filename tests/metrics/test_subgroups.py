"""Groups of a split have the figures and intervals that a split of them alone would have."""

import numpy as np
import pytest

from covidjax.errors import UserError
from covidjax.metrics import bootstrap, classification, subgroups
from covidjax.metrics.comparison import Judged
from tests.predictions import make_predictions, make_report


def test_figures_of_a_group_are_those_of_its_images_alone() -> None:
    table, labels = make_predictions(0, 150)
    patients = tuple(str(number // 2) for number in range(150))
    groups = ["a" if number < 90 else "b" for number in range(150)]
    clusters = bootstrap.patient_clusters(patients, known=True)

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = classification.weighted_figures(table, labels, weights)
        return {name: found[name] for name in ("accuracy", "balanced_accuracy", "macro_auroc")}

    judged = Judged((), (), tuple(labels.tolist()), table.argmax(axis=1) == labels, figures)
    for row, chosen in zip(subgroups.figures(judged, clusters, groups), (slice(90), slice(90, 150)), strict=True):
        alone = make_report(table[chosen], labels[chosen], patients=patients[chosen], resamples=1000)
        for name in ("accuracy", "balanced_accuracy", "macro_auroc"):
            assert row[name] == pytest.approx(alone[name])
            assert row[f"{name}_ci95"] == pytest.approx(alone[f"{name}_ci95"])
        assert (row["num_examples"], row["num_clusters"], row["small"]) == (
            len(labels[chosen]),
            len(labels[chosen]) // 2,
            False,
        )


def test_many_numbers_are_cut_at_their_quartiles_and_texts_stay() -> None:
    ages = [str(age) for age in range(20, 100)]
    found = subgroups.groups_of("age", [*ages, ""])
    assert {name: found.count(name) for name in dict.fromkeys(found)} == {
        "20 to below 39.75": 20, "39.75 to below 59.5": 20, "59.5 to below 79.25": 20, "79.25 to 99": 20, "not told": 1,
    }  # fmt: skip
    assert subgroups.groups_of("view", ["PA", "", "AP"]) == ["PA", "not told", "AP"]
    with pytest.raises(UserError, match="80 values, such as"):
        subgroups.groups_of("name", [f"x{age}" for age in ages])
    with pytest.raises(UserError, match="no image has a value"):
        subgroups.groups_of("view", ["", ""])
