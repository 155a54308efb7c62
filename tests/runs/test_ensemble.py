"""Mixtures by hand, the rules that learn their weights, and which of the rounds is chosen."""

import math

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from covidjax import optim
from covidjax.config import load
from covidjax.data.order import batch_indices
from covidjax.models.mixture import MIXES, Candidate, by_accuracy, by_gradient, choose, mean_loss, mix
from covidjax.runs.ensemble import fit, learn
from tests.commands import ROOT, user_error

CONFIG = str(ROOT / "configs" / "ensemble.py")


def settings(*overrides: str) -> ConfigDict:
    return load(CONFIG, [f"--config.{override}" for override in overrides])


def answers(seed: int, members: int = 3, count: int = 40, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [members, n, classes] of members that know a little, the later the more, and labels [n]."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    logits = random.normal(0, 1, (members, count, classes))
    logits[:, np.arange(count), labels] += np.arange(members)[:, None] * 0.7
    return np.asarray(jax.nn.softmax(logits.astype(np.float32))), labels


def test_probabilities_are_mixed_by_their_mean_and_logits_before_the_softmax() -> None:
    members = np.array([[[0.6, 0.3, 0.1]], [[0.2, 0.2, 0.6]]], np.float32)
    np.testing.assert_allclose(mix(members, [0.75, 0.25], "probabilities"), [[0.5, 0.275, 0.225]], rtol=1e-6)
    # Logits (ln 2, 0) and (0, ln 8); half of each is (ln 2 / 2, 3 ln 2 / 2), and these differ by ln 2.
    members = np.array([[[2 / 3, 1 / 3]], [[1 / 9, 8 / 9]]], np.float32)
    np.testing.assert_allclose(mix(members, [0.5, 0.5], "logits"), [[1 / 3, 2 / 3]], rtol=1e-6)
    members = np.array([[[0.2, 0.8]], [[1.0, 0.0]]], np.float32)
    for how in MIXES:  # a member without weight does not matter even where it is certain
        np.testing.assert_allclose(mix(members, [1.0, 0.0], how), members[0], rtol=1e-6)
        assert math.isfinite(float(mean_loss(mix(members, [0.0, 1.0], how), np.array([1]))))


def test_accuracy_of_a_round_multiplies_the_weights() -> None:
    correct = np.array([[True, True, False, True], [True, False, False, False]])
    found = by_accuracy(correct, np.array([[0, 1], [2, 3]]))  # accuracies 1 and 0.5, then 0.5 and 0
    rate = math.sqrt(8 * math.log(2) / 2)
    expected = [0.5, 1 / (1 + math.exp(-0.5 * rate)), 1 / (1 + math.exp(-rate))]
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize("how", MIXES)
def test_gradient_moves_the_weights_down_the_loss(how: str) -> None:
    probabilities, labels = answers(0)
    config = settings("optimizer.name=sgd", "optimizer.momentum=0.0", "optimizer.learning_rate=0.5")
    tx, rate = optim.optimizer(config.optimizer), optim.learning_rate_schedule(config.optimizer, 60, 1)
    found = by_gradient(probabilities, labels, how, tx, rate, 60)
    assert found.shape == (61, 3)
    np.testing.assert_allclose(found[0], 1 / 3)

    def loss(weights: np.ndarray) -> float:
        return float(mean_loss(mix(probabilities, weights, how), labels))

    def softmax(scores: np.ndarray) -> np.ndarray:
        return np.exp(scores) / np.exp(scores).sum()

    slopes = [(loss(softmax(0.05 * step)) - loss(softmax(-0.05 * step))) / 0.1 for step in np.eye(3)]
    np.testing.assert_allclose(found[1], softmax(-0.5 * np.array(slopes)), atol=1e-3)
    losses = [loss(weights) for weights in found[::10]]
    assert losses == sorted(losses, reverse=True)


def test_rounds_take_batches_of_the_split_in_turn() -> None:
    probabilities, labels = answers(1)
    config = settings("epochs=5", "batch_size=16", "seed=3")
    batches = np.stack([batch_indices(3, step, 40, 16) for step in range(5)])
    expected = by_accuracy(probabilities.argmax(-1) == labels, batches)
    np.testing.assert_array_equal(learn(config, probabilities, labels), expected)
    whole = learn(settings("epochs=2", "batch_size=64"), probabilities, labels)
    np.testing.assert_allclose(whole, by_accuracy(probabilities.argmax(-1) == labels, np.tile(np.arange(40), (2, 1))))


def test_the_highest_accuracy_is_chosen_then_the_lowest_loss_then_the_first() -> None:
    figures = ((0.8, 0.1), (0.9, 0.5), (0.9, 0.4), (0.9, 0.4))
    found = [Candidate(np.ones(2) / 2, number, *each) for number, each in enumerate(figures)]
    assert choose(found).number == 2


@pytest.mark.parametrize("rule", ["accuracy", "gradient"])
@pytest.mark.parametrize("how", MIXES)
def test_what_is_chosen_is_not_below_any_member_on_the_split_that_decides(rule: str, how: str) -> None:
    labels = np.zeros(10, int)
    unsure, sure = np.tile([0.4, 0.35, 0.25], (10, 1)), np.tile([0.98, 0.01, 0.01], (10, 1))
    sure[0] = [0.01, 0.98, 0.01]  # wrong, and outvotes the other member, which is right everywhere
    config = settings("epochs=3", f"ensemble.weights={rule}", f"ensemble.mix={how}")
    rounds, best = fit(config, np.stack([unsure, sure]).astype(np.float32), labels)
    assert [each.accuracy for each in rounds] == [0.9] * 4
    assert (best.accuracy, best.number, best.weights.tolist()) == (1, None, [1, 0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ensemble.members=runs/a"], "config.ensemble.members is 'runs/a': allowed is a tuple"),
        (["ensemble.members=(1, 2)"], "allowed are workdirs, such as ('runs/a', 'runs/b')"),
        (["ensemble.mix=votes"], "config.ensemble.mix is 'votes': allowed are probabilities, logits"),
        (["ensemble.weights=best"], "config.ensemble.weights is 'best': allowed are accuracy, gradient, equal"),
        (["ensemble.weights_from=train"], "config.ensemble.weights_from is 'train': allowed are val, test"),
        (["ensemble.weights=equal", "ensemble.weights_from=test"], "no split decides equal weights"),
        (["ensemble.weights=gradient", "optimizer.learning_rate=(1e-3, 1e-2)"], "give a number"),
        (["ensemble.weights=gradient", "optimizer.schedule=plateau"], "which an ensemble does not have"),
    ],
)
def test_settings_that_mean_nothing_are_refused(overrides: list[str], message: str) -> None:
    assert message in user_error(settings, *overrides)
