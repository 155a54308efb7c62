"""The training of an ensemble: frozen members answer once, rounds learn the weights of their answers.

Wang et al. 2020 verify the weights on the test set; here they are learnt on the validation split, unless
`config.ensemble.weights_from` asks for that leak by name. How the paper is read: `covidjax.models.mixture`.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import files, optim
from covidjax.data.order import batch_indices
from covidjax.errors import UserError
from covidjax.models import mixture as mixtures
from covidjax.report import run as report
from covidjax.runs import members as ensemble
from covidjax.runs import record
from covidjax.runs.evaluate_ensemble import LEAK, write_evaluation
from covidjax.runs.members import Member, Mixture
from covidjax.train.writer import MetricsWriter


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """Weights that may be chosen, with the accuracy and the loss of their mixture on a split.

    number: of the round that they are from, 0 before the first; None for a member alone, which has all the weight.
    """

    weights: np.ndarray
    number: int | None
    accuracy: float
    loss: float


def train(config: ConfigDict, workdir: Path) -> Path:
    """Makes the ensemble that `config` describes, evaluates the validation split, writes the report.

    `config.dataset` becomes that of the first member; `config.epochs` are rounds, `config.batch_size` images of one.
    A finished ensemble is left as it is. Returns the path of report.html. The test split is read only where
    `config.ensemble.weights_from` is 'test'. Raises UserError for what a person can mend.
    """
    names, settings, report_path = tuple(config.ensemble.members), config.ensemble, workdir / "report.html"
    members = ensemble.load_members(names, ["best"] * len(names), config.precision)
    config = _on_data_of(config, members[0])
    record.open_workdir(workdir, config)
    run = _open_record(workdir, config, members)
    if "weights" in run["ensemble"] and report_path.exists():
        return report_path

    # ---- Data, and one pass of each member over a split ----
    began = time.monotonic()
    val = ensemble.read_split(members, "val")
    files.write_json(workdir / "config.json", configs.to_json(config))
    run["notes"] = list(val[0].notes)
    record.end_reading(workdir, run, val[0], "classification")
    splits = {"val": val}
    if settings.weights_from == "test":
        run = record.begin_reading(workdir, "test")
        splits["test"] = ensemble.read_split(members, "test")
        record.end_reading(workdir, run, splits["test"][0], "classification")
    run["timings"]["data_seconds"] = round(time.monotonic() - began, 2)
    began = time.monotonic()
    answers = {
        split: np.stack([member.probabilities(one.images) for member, one in zip(members, seen, strict=True)])
        for split, seen in splits.items()
    }
    run["timings"]["forward_seconds"] = round(time.monotonic() - began, 2)
    run["ensemble"]["forward_passes"] = {split: len(members) for split in answers}

    # ---- Rounds, and the best of them ----
    began = time.monotonic()
    rounds, best = fit(config, answers[settings.weights_from], splits[settings.weights_from][0].labels)
    with MetricsWriter(workdir, first_step=-1) as writer:
        for each in rounds:
            writer.write(_row(each, settings.weights_from))
    run["timings"]["train_seconds"] = round(time.monotonic() - began, 2)

    # ---- The record, validation figures, the report ----
    told = list(_told(members, best, rounds, settings))
    print(*told, sep="\n")
    run["notes"] += told
    run["ensemble"] |= {
        "rounds": len(rounds) - 1,
        "chosen_round": best.number,
        "better_member": members[choose(alone(answers["val"], val[0].labels, settings.mix)).weights.argmax()].name,
        "weights": best.weights.tolist(),
    }
    files.write_json(workdir / "run.json", run)
    write_evaluation(workdir, Mixture(config, members, best.weights), val[0], list(answers["val"]))
    return report.write(workdir, {"val": val[0]})


def learn(config: ConfigDict, probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The weights before the first round and after each, by `config.ensemble.weights`; equal ones have no rounds.

    probabilities: [members, n, classes]; labels: [n] int. Returns [rounds + 1, members] float64.
    """
    count, rounds = len(labels), config.epochs
    match config.ensemble.weights:
        case "accuracy":
            size = min(config.batch_size, count)
            batches = np.stack([batch_indices(config.seed, step, count, size) for step in range(rounds)])
            return mixtures.by_accuracy(probabilities.argmax(axis=-1) == labels, batches)
        case "gradient":
            rate = optim.learning_rate_schedule(config.optimizer, rounds, steps_per_epoch=1)
            tx = optim.optimizer(config.optimizer)
            return mixtures.by_gradient(probabilities, labels, config.ensemble.mix, tx, rate, rounds)
    return np.full((1, len(probabilities)), 1 / len(probabilities))


def fit(config: ConfigDict, probabilities: np.ndarray, labels: np.ndarray) -> tuple[list[Candidate], Candidate]:
    """The mixture of every round, measured on the split that decides, and the one that is chosen.

    Where weights are learnt, each member alone is a candidate beside the rounds: all of the weight on one member is a
    mixture as well, and the figures that choose a round tell as much of it. So on the split that decides the accuracy
    is never below that of a member. It is optimistic there, as the best of many always is; on other splits nothing is
    promised. The arguments are those of `learn`.
    """
    how = config.ensemble.mix
    learnt = learn(config, probabilities, labels)
    rounds = [judge(weights, number, probabilities, labels, how) for number, weights in enumerate(learnt)]
    learns = config.ensemble.weights != "equal"
    return rounds, choose([*rounds, *alone(probabilities, labels, how)] if learns else rounds)


def alone(probabilities: np.ndarray, labels: np.ndarray, how: str) -> list[Candidate]:
    """Each member with all of the weight."""
    return [judge(weights, None, probabilities, labels, how) for weights in np.eye(len(probabilities))]


def judge(
    weights: np.ndarray, number: int | None, probabilities: np.ndarray, labels: np.ndarray, how: str
) -> Candidate:
    """Measures a mixture. The arguments are those of `learn` and `mixtures.mix`; number: see `Candidate`."""
    mixed = mixtures.mix(probabilities, weights, how)
    accuracy = float(np.mean(np.asarray(mixed).argmax(axis=1) == labels))
    return Candidate(weights, number, accuracy, float(mixtures.mean_loss(mixed, labels)))


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate of the highest accuracy; of equal ones the lowest loss, of these the first."""
    return min(candidates, key=lambda candidate: (-candidate.accuracy, candidate.loss))


def _on_data_of(config: ConfigDict, member: Member) -> ConfigDict:
    """The config with the data set of a member. Raises UserError where it asks for another one."""
    theirs, usual = member.trained.config.dataset, configs.default_config().dataset
    for key, value in config.dataset.items():
        if value not in (usual[key], theirs[key]):
            raise UserError(
                f"config.dataset.{key} is {value!r}, but an ensemble reads what its members read, and "
                f"{member.workdir} has {theirs[key]!r}: leave it out"
            )
    config = configs.from_json(configs.to_json(config))
    config.dataset.update(theirs)
    return config


def _open_record(workdir: Path, config: ConfigDict, members: Sequence[Member]) -> dict[str, Any]:
    """The content of run.json: that of a former attempt, or one that begins.

    Raises UserError where a member is another network than it was then.
    """
    path, settings = workdir / "run.json", config.ensemble
    if path.exists():
        former = files.read_json(path)
        ensemble.check_unchanged(workdir, members, former["ensemble"])
        return former | record.environment()
    leak = {"leak": LEAK} if settings.weights_from == "test" else {}
    described = {
        "mix": settings.mix,
        "rule": settings.weights,
        "weights_from": settings.weights_from,
        **leak,
        "members": [member.describe() for member in members],
    }
    return {**record.environment(), "data": {}, "ensemble": described, "timings": {}, "test_reads": []}


def _row(candidate: Candidate, split: str) -> dict[str, Any]:
    """The line of metrics.jsonl on a round."""
    place = {"step": candidate.number, "epoch": candidate.number, "phase": 0, "split": split}
    weights = {f"weight_{index}": float(weight) for index, weight in enumerate(candidate.weights)}
    return {**place, "loss": candidate.loss, "accuracy": candidate.accuracy, **weights}


def _told(members: Sequence[Member], best: Candidate, rounds: Sequence[Candidate], settings: Any) -> Iterator[str]:
    """What was chosen, in sentences."""
    shares = ", ".join(f"{member.name} {weight:.3f}" for member, weight in zip(members, best.weights, strict=True))
    if settings.weights == "equal":
        yield f"weights: {shares}"
    elif best.number is None:
        (name,) = (member.name for member, weight in zip(members, best.weights, strict=True) if weight)
        yield f"no mixture was better than {name} alone on the {settings.weights_from} split: it has all the weight"
    else:
        yield (
            f"weights: {shares}, those of round {best.number} of {len(rounds) - 1}, the best on the "
            f"{settings.weights_from} split (accuracy {best.accuracy:.4f}, loss {best.loss:.4f})"
        )
    if settings.weights_from == "test":
        yield f"leak: {LEAK}"
