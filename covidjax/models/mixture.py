"""Mixtures of the answers of several networks, the two rules that learn their weights, and which weights are chosen.

Pure functions of arrays.

How Wang et al. 2020 are read (II.C, III.B): both networks are frozen, each has a weight on its output, and "the weight
of the higher accuracy rate is higher, and vice versa"; "the weight of improving accuracy is improved during the
training process". The paper has no formula. Two of its remarks narrow the rule down: the member that is ahead in one
round "is not necessarily" in the next, although both are frozen, so a round sees a part of the images; and the loss is
unsteady "because of the dynamic changes in the weights", so these move from round to round and are no fixed shares.
`by_accuracy` is the multiplicative update, which has these properties and no constant to choose.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MIXES = ("probabilities", "logits")
RULES = ("accuracy", "gradient", "equal")


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """Weights that may be chosen, with the accuracy and the loss of their mixture on a split.

    number: of the round that they are from, 0 before the first; None for a member alone, which has all the weight.
    """

    weights: np.ndarray
    number: int | None
    accuracy: float
    loss: float


@jax.jit(static_argnames="how")
def mix(probabilities: Any, weights: Any, how: str) -> jax.Array:
    """The distribution over the classes that a mixture answers with.

    probabilities: [members, n, classes] float, rows sum to 1; weights: [members] float, at least 0, sum 1; how:
    'probabilities', their weighted mean, or 'logits', the softmax of the members' weighted logits. The logarithms of
    the probabilities stand for the logits: they differ by a constant of each row, which the softmax does not see.
    Returns [n, classes], rows sum to 1.
    """
    shares = jnp.asarray(weights, probabilities.dtype)[:, None, None]
    if how == "probabilities":
        return jnp.sum(shares * probabilities, axis=0)
    return jax.nn.softmax(jnp.sum(shares * _logarithms(probabilities), axis=0))


@jax.jit
def mean_loss(probabilities: Any, labels: Any) -> jax.Array:
    """Cross-entropy, the mean over the examples: [n, classes] float, [n] int -> []."""
    return -jnp.mean(jnp.take_along_axis(_logarithms(probabilities), jnp.asarray(labels)[:, None], axis=1))


def by_accuracy(correct: np.ndarray, batches: np.ndarray) -> np.ndarray:
    """The weights before the first round and after each, learnt from the accuracies of the rounds.

    A round multiplies the weight of a member by exp(rate * its accuracy on the round's batch) and divides by the sum:
    the member that is ahead gains what the others lose. From equal weights the first rounds are near weights in
    proportion to accuracy; later ones lean further to the member that is ahead more often. rate is
    sqrt(8 ln(members) / rounds), with which the mean accuracy of the weights stays within
    sqrt(ln(members) / (2 rounds)) of the best member's (Cesa-Bianchi and Lugosi 2006, theorem 2.2).

    correct: [members, n] bool, whether a member is right on an example; batches: [rounds, batch] int, the examples of
    each round. Returns [rounds + 1, members] float64.
    """
    accuracies = correct[:, batches].mean(axis=-1).T
    rate = np.sqrt(8 * np.log(len(correct)) / len(batches))
    gains = rate * np.concatenate([np.zeros((1, len(correct))), np.cumsum(accuracies, axis=0)])
    powers = np.exp(gains - gains.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def by_gradient(
    probabilities: np.ndarray, labels: np.ndarray, how: str, tx: Any, learning_rate: Any, rounds: int
) -> np.ndarray:
    """The weights before the first round and after each, learnt by the gradient of the mixture's mean loss.

    The weights are the softmax of one number a member, all zero at first. probabilities, how: see `mix`; labels: [n]
    int; tx: of `optim.optimizer`; learning_rate: step -> its rate. Returns [rounds + 1, members] float64.
    """

    def loss(scores: jax.Array) -> jax.Array:
        return mean_loss(mix(probabilities, jax.nn.softmax(scores), how), labels)

    def one(carry: tuple[jax.Array, Any], step: jax.Array) -> tuple[tuple[jax.Array, Any], jax.Array]:
        scores, state = carry
        direction, state = tx.update(jax.grad(loss)(scores), state, scores)
        scores = scores - learning_rate(step) * direction
        return (scores, state), jax.nn.softmax(scores)

    scores = jnp.zeros(len(probabilities), probabilities.dtype)
    _, found = jax.jit(lambda: jax.lax.scan(one, (scores, tx.init(scores)), jnp.arange(rounds)))()
    equal = np.full((1, len(probabilities)), 1 / len(probabilities))
    return np.concatenate([equal, np.asarray(found, np.float64)])


def candidates(learnt: np.ndarray, probabilities: np.ndarray, labels: np.ndarray, how: str) -> list[Candidate]:
    """The mixture of every round, measured. learnt: [rounds + 1, members]; for the rest see `by_gradient`."""
    return [_measured(weights, number, probabilities, labels, how) for number, weights in enumerate(learnt)]


def alone(probabilities: np.ndarray, labels: np.ndarray, how: str) -> list[Candidate]:
    """Each member with all of the weight; the arguments are those of `by_gradient`."""
    return [_measured(weights, None, probabilities, labels, how) for weights in np.eye(len(probabilities))]


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate of the highest accuracy; of equal ones the lowest loss, of these the first."""
    return min(candidates, key=lambda candidate: (-candidate.accuracy, candidate.loss))


def _measured(
    weights: np.ndarray, number: int | None, probabilities: np.ndarray, labels: np.ndarray, how: str
) -> Candidate:
    mixed = mix(probabilities, weights, how)
    accuracy = float(np.mean(np.asarray(mixed).argmax(axis=1) == labels))
    return Candidate(weights, number, accuracy, float(mean_loss(mixed, labels)))


def _logarithms(probabilities: Any) -> jax.Array:
    """Finite also where a probability is too small for its dtype: times a weight of 0 that would be no number."""
    return jnp.log(jnp.maximum(probabilities, jnp.finfo(probabilities.dtype).tiny))
