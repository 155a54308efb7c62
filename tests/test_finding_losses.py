"""Losses of several findings: their formulas on the labels that are known, and nothing of the others."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from covidjax import losses
from covidjax.losses import FINDING_LOSSES

FINDINGS = np.random.default_rng(0).choice([1, 0, -1, -2], (12, 5), p=[0.3, 0.4, 0.1, 0.2]).astype(np.int8)
LOGITS = 4 * np.random.default_rng(1).normal(size=FINDINGS.shape)
WEIGHTS = (0.5, 2.0, 1.0, 3.0, 1.25)
CASES = [
    ("findings_cross_entropy", {}),
    *(("findings_focal", {"gamma": gamma}) for gamma in (0.0, 0.5, 2.0)),
    ("asymmetric", {}),
    ("asymmetric", {"gamma_positive": 1.0, "gamma_negative": 0.5, "margin": 0.0}),
]
every_loss = pytest.mark.parametrize(("name", "options"), CASES)


def make(name: str, options: dict[str, float], weights: tuple[float, ...] | None = None) -> Any:
    """The loss of a config."""
    section = {"name": name, "label_smoothing": 0.0, "options": tuple(options.items())}
    return jax.jit(losses.loss_function(ConfigDict(section), weights, FINDING_LOSSES))


def by_hand(name: str, options: dict[str, float], weights: tuple[float, ...]) -> np.ndarray:
    """The same, label by label."""
    total = np.zeros(len(LOGITS))
    for (row, column), label in np.ndenumerate(FINDINGS):
        p = 1 / (1 + np.exp(-LOGITS[row, column]))
        weight = weights[column] if label == 1 else 1.0
        true = p if label == 1 else 1 - p
        if name == "asymmetric":
            chosen = {"gamma_positive": 0.0, "gamma_negative": 4.0, "margin": 0.05, **options}
            q = np.maximum(p - chosen["margin"], 0)
            absent = -(q ** chosen["gamma_negative"]) * np.log(1 - q)
            value = -((1 - p) ** chosen["gamma_positive"]) * np.log(p) if label == 1 else absent
        else:
            value = -((1 - true) ** options.get("gamma", 0.0)) * np.log(true)
        total[row] += weight * value if label >= 0 else 0.0
    return total / FINDINGS.shape[1]


@every_loss
def test_a_loss_is_that_of_the_known_labels_alone(name: str, options: dict[str, float]) -> None:
    with jax.enable_x64(True):
        found = make(name, options, WEIGHTS)(jnp.asarray(LOGITS), jnp.asarray(FINDINGS))
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, by_hand(name, options, WEIGHTS), rtol=1e-10)


@every_loss
def test_unknown_labels_have_no_gradient_and_known_ones_have(name: str, options: dict[str, float]) -> None:
    with jax.enable_x64(True):
        loss = make(name, options, WEIGHTS)
        gradient = np.asarray(jax.grad(lambda logits: loss(logits, jnp.asarray(FINDINGS)).sum())(jnp.asarray(LOGITS)))
    assert (gradient[FINDINGS < 0] == 0).all()
    below = (name == "asymmetric") & (FINDINGS == 0) & (1 / (1 + np.exp(-LOGITS)) < 0.05)
    assert (gradient[(FINDINGS >= 0) & ~below] != 0).all()


@every_loss
@pytest.mark.parametrize("size", [1e37, 1e4, 0.0])
def test_no_logit_makes_a_value_or_a_gradient_that_is_not_finite(
    name: str, options: dict[str, float], size: float
) -> None:
    loss, findings = make(name, options), jnp.asarray([[1, 0, -2]], jnp.int8)
    for sign in (1, -1):
        logits = jnp.full((1, 3), sign * size, jnp.float32)
        value, gradient = jax.value_and_grad(lambda logits: loss(logits, findings).sum())(logits)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_an_image_of_which_nothing_is_known_costs_nothing() -> None:
    assert make("findings_cross_entropy", {})(jnp.ones((1, 3)), jnp.full((1, 3), -2, jnp.int8)) == 0
    assert losses.known_share(jnp.ones((1, 3)), jnp.full((1, 3), -1, jnp.int8)) == 0


def test_the_known_share_is_of_the_known_labels() -> None:
    logits, findings = jnp.asarray([[2.0, -1.0, 3.0, 1.0]]), jnp.asarray([[1, 0, 0, -1]], jnp.int8)
    np.testing.assert_allclose(losses.known_share(logits, findings), [2 / 3], rtol=1e-6)
