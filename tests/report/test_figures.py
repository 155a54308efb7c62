import numpy as np

from covidjax.report import figures


def test_phase_labels_that_do_not_fit_are_shortened() -> None:
    curve = figures.Curve("train", (1, 2, 3, 4), (4.0, 3.0, 2.0, 1.0))

    def drawn(strategy: str) -> bytes:
        spans = [figures.PhaseSpan(0, strategy, 1, 2), figures.PhaseSpan(1, r"a$ \d_$", 3, 4)]
        return figures.learning_curve([curve], spans)

    assert rb"<!-- phase 1: a$ \d_$ -->" in drawn("backbone")
    assert b"<!-- phase 1 -->" in drawn("a pattern as long as the figure")


def test_reliability_diagram_puts_each_probability_in_one_bin() -> None:
    edges = np.linspace(0, 1, 11)
    for confidences in (np.array([1.0]), np.array([0.0, 0.1, 1.0]), np.linspace(0, 1, 50)):
        assert b"<svg" in figures.reliability_diagram(confidences, confidences > 0.5, edges)


def test_histogram_names_the_median_and_begins_below_all_values() -> None:
    drawn = figures.histogram(np.array([0.71, 0.9, 0.95]), "Dice", "images")
    assert b"<!-- median 0.900 -->" in drawn
    assert b"<!-- 0.70 -->" in drawn
    assert b"<!-- 0.60 -->" not in drawn
    for values in (np.zeros(3), np.ones(1), np.array([0.0, 1.0]), np.array([-7.5, 3.0, 12.0]), np.full(3, 4.0)):
        assert b"<svg" in figures.histogram(values, "Dice", "images")


def test_lone_validation_curve_is_named() -> None:
    for name, named in (("val", True), ("train", False)):
        drawn = figures.learning_curve([figures.Curve(name, (1, 2), (0.5, 0.7))], [])
        assert (f"<!-- {name} -->".encode() in drawn) == named
