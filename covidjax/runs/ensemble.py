"""Ensembles: frozen networks answer once, rounds learn the weights of their answers, splits measure their mixture.

Wang et al. 2020 verify the weights on the test set; here they are learnt on the validation split, unless
`config.ensemble.weights_from` asks for that leak by name. How the paper is read: `covidjax.models.mixture`.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import files, optim, tasks
from covidjax.checkpoint import journal
from covidjax.checkpoint.checkpoint import Which
from covidjax.data import sources
from covidjax.data.examples import Examples
from covidjax.data.order import batch_indices
from covidjax.errors import UserError, some_of
from covidjax.evaluate.members import Member, Mixture, check_unchanged, load_members, load_mixture
from covidjax.metrics import bootstrap, classification, prediction_table
from covidjax.metrics.comparison import paired_accuracy
from covidjax.models import mixture
from covidjax.models.mixture import Candidate
from covidjax.report import run as report
from covidjax.runs import record
from covidjax.train.writer import MetricsWriter, hooks_of

LEAK = (
    "the weights were chosen on the test split, as in Wang et al. 2020: its figures are too good and say nothing about "
    "new images"
)
OPTIMISTIC = "the weights were chosen on this split, so the figures of the mixture are optimistic on it"
# The figures of a member that are kept beside its place in the table.
FIGURES = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "loss", "ece")


def read_split(members: Sequence[Member], split: str) -> list[Examples]:
    """A split as each member sees it: the same examples at the member's own size.

    Raises UserError where they are not the same, or not those that the member's run recorded.
    """
    found: list[Examples] = []
    for member in members:
        examples = sources.load(member.trained.config.dataset, split, recorded=record.split_of(member.workdir))
        record.check_recorded(member.workdir, journal.read(member.workdir), examples)
        if found and _identity(members[0], found[0]) != _identity(member, examples):
            raise UserError(
                f"the {split} examples of {member.workdir} are not those of {members[0].workdir}: members see the same "
                "data set, split in the same way"
            )
        found.append(examples)
    return found


def train(config: ConfigDict, workdir: Path) -> Path:
    """Makes the ensemble that `config` describes, evaluates the validation split, writes the report.

    `config.dataset` becomes that of the first member; `config.epochs` are rounds, `config.batch_size` images of one.
    A finished ensemble is left as it is. Returns the path of report.html. The test split is read only where
    `config.ensemble.weights_from` is 'test'. Raises UserError for what a person can mend.
    """
    names, settings, report_path = tuple(config.ensemble.members), config.ensemble, workdir / "report.html"
    members = load_members(names, [None] * len(names), config.precision)
    if settings.weights != "equal" and (seen := [m.name for m in members if configs.trains_on_val(m.trained.config)]):
        raise UserError(
            f"{some_of(seen)} trained on val, which decides the weights: set config.ensemble.weights to 'equal'"
        )
    config = _on_data_of(config, members[0])
    record.open_workdir(workdir, config)
    run = _open_record(workdir, settings, members)
    if "weights" in run["ensemble"] and report_path.exists():
        return report_path

    # ---- Data, and one pass of each member over a split ----
    began = time.monotonic()
    val = read_split(members, "val")
    files.write_json(workdir / "config.json", configs.to_json(config))
    run["notes"] = list(val[0].notes)
    record.write(workdir, run)
    record.end_reading(workdir, val[0], tasks.of(config.model.name))
    splits = {"val": val}
    if settings.weights_from == "test":
        record.begin_reading(workdir, "test")
        splits["test"] = read_split(members, "test")
        record.end_reading(workdir, splits["test"][0], tasks.of(config.model.name))
    run["timings"]["data_seconds"] = round(time.monotonic() - began, 2)
    began = time.monotonic()
    answers = {split: _answers(members, seen) for split, seen in splits.items()}
    run["timings"]["forward_seconds"] = round(time.monotonic() - began, 2)
    run["ensemble"]["forward_passes"] = {split: len(members) for split in answers}

    # ---- Rounds, and the best of them ----
    began = time.monotonic()
    rounds, best = fit(config, answers[settings.weights_from], splits[settings.weights_from][0].labels)
    with MetricsWriter(workdir, first_step=-1, hooks=hooks_of(config, workdir)) as writer:
        for each in rounds:
            place = {"step": each.number, "epoch": each.number, "phase": 0, "split": settings.weights_from}
            weights = {f"weight_{index}": float(weight) for index, weight in enumerate(each.weights)}
            writer.write({**place, "loss": each.loss, "accuracy": each.accuracy, **weights})
    run["timings"]["train_seconds"] = round(time.monotonic() - began, 2)

    # ---- The record, validation figures, the report ----
    notes = _notes(members, best, len(rounds) - 1, settings)
    print(*notes, sep="\n")
    run["notes"] += [*notes, *writer.notes]
    single = mixture.choose(mixture.alone(answers["val"], val[0].labels, settings.mix))
    run["ensemble"] |= {
        "rounds": len(rounds) - 1,
        "chosen_round": best.number,
        "better_member": members[single.weights.argmax()].name,
        "weights": best.weights.tolist(),
    }
    record.write(workdir, run)
    _write_evaluation(workdir, Mixture(config, members, best.weights), val[0], answers["val"])
    return report.write(workdir, {"val": val[0]})


def evaluate(workdir: Path, split: str, which: Which | None) -> dict[str, Any]:
    """Evaluates mixture and members on a split; writes predictions, evaluation, run.json and the report anew.

    A reading of the test split is recorded in run.json before it happens. Returns what evaluation_<split>.json holds.
    Raises UserError where the ensemble is not finished or a member is gone or another one, before the split is read,
    and where the images are not those that were recorded.
    """
    mixed = load_mixture(workdir, which)  # where this fails the test split is not touched
    record.begin_reading(workdir, split)
    examples = read_split(mixed.members, split)
    record.end_reading(workdir, examples[0], mixed.task)
    answers = _answers(mixed.members, examples)
    with journal.changing(workdir) as run:
        passes = run["ensemble"]["forward_passes"]
        passes[split] = passes.get(split, 0) + len(answers)
    first = mixed.members[0]
    copies = sources.copies_elsewhere(first.trained.config.dataset, examples[0], record.split_of(first.workdir))
    seen = dataclasses.replace(examples[0], notes=(*examples[0].notes, *copies))
    result = _write_evaluation(workdir, mixed, seen, answers)
    shown = {split: seen}
    if split != "val":
        shown["val"] = read_split(mixed.members[:1], "val")[0]
    report.write(workdir, shown)
    return result


def learn(config: ConfigDict, probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The weights before the first round and after each, by `config.ensemble.weights`; equal ones have no rounds.

    probabilities: [members, n, classes]; labels: [n] int. Returns [rounds + 1, members] float64.
    """
    count, rounds = len(labels), config.epochs
    match config.ensemble.weights:
        case "accuracy":
            size = min(config.batch_size, count)
            batches = np.stack([batch_indices(config.seed, step, count, size) for step in range(rounds)])
            return mixture.by_accuracy(probabilities.argmax(axis=-1) == labels, batches)
        case "gradient":
            rate = optim.learning_rate_schedule(config.optimizer, rounds, steps_per_epoch=1)
            tx = optim.optimizer(config.optimizer)
            return mixture.by_gradient(probabilities, labels, config.ensemble.mix, tx, rate, rounds)
    return np.full((1, len(probabilities)), 1 / len(probabilities))


def fit(config: ConfigDict, probabilities: np.ndarray, labels: np.ndarray) -> tuple[list[Candidate], Candidate]:
    """The mixture of every round, measured on the split that decides, and the one that is chosen.

    Where weights are learnt, each member alone is a candidate beside the rounds: all of the weight on one member is a
    mixture as well, and the figures that choose a round tell as much of it. So on the split that decides the accuracy
    is never below that of a member. It is optimistic there, as the best of many always is; on other splits nothing is
    promised. The arguments are those of `learn`.
    """
    how = config.ensemble.mix
    rounds = mixture.candidates(learn(config, probabilities, labels), probabilities, labels, how)
    learns = config.ensemble.weights != "equal"
    return rounds, mixture.choose([*rounds, *mixture.alone(probabilities, labels, how)] if learns else rounds)


def _answers(members: Sequence[Member], examples: Sequence[Examples]) -> np.ndarray:
    """[members, n, classes], each member's from the split as it sees it."""
    return np.stack([member.probabilities(each.images) for member, each in zip(members, examples, strict=True)])


def _write_evaluation(workdir: Path, mixed: Mixture, examples: Examples, answers: np.ndarray) -> dict[str, Any]:
    """Writes predictions_<split>.csv of the mixture and evaluation_<split>.json, and returns what the latter holds.

    That is `metrics.classification_report` of the mixture, and: ensemble (how it was mixed), members (the figures of
    each, with its weight), comparison (mixture against each member: difference of accuracy, its interval, McNemar's
    test), optimistic or leak where they hold. answers: [members, n, classes].
    """
    settings, labels, split = mixed.config.ensemble, examples.labels, examples.split
    table = mixed.mix(answers)

    def figures(probabilities: np.ndarray) -> dict[str, Any]:
        loss = float(mixture.mean_loss(probabilities, labels))
        return classification.classification_report(probabilities, examples, loss)

    result = figures(table)
    result["ensemble"] = {"mix": settings.mix, "rule": settings.weights, "weights_from": settings.weights_from}
    result["members"], result["comparison"] = [], []
    clusters = bootstrap.clusters_of(examples)
    right = table.argmax(axis=1) == labels
    for member, weight, answer in zip(mixed.members, mixed.weights, answers, strict=True):
        kept = {key: value for key, value in figures(answer).items() if key.removesuffix("_ci95") in FIGURES}
        result["members"].append({"name": member.name, "weight": float(weight), **kept})
        paired = paired_accuracy(right, answer.argmax(axis=1) == labels, clusters)
        result["comparison"].append(
            {
                "member": member.name,
                "difference": paired.difference,
                "difference_ci95": None if math.isnan(paired.low) else [paired.low, paired.high],
                "only_mixture_right": paired.only_first,
                "only_member_right": paired.only_second,
                "mcnemar_p": paired.p,
            }
        )
    unit = "by patient" if examples.patients_known else "by image"
    result["intervals"]["the difference to a member"] = (
        f"bootstrap of pairs {unit}, 1000 resamples, 95 % percentile, widened where patients are few"
    )
    if settings.weights_from == "test":
        result["leak"] = LEAK
    elif settings.weights != "equal" and split == settings.weights_from:
        result["optimistic"] = OPTIMISTIC
    prediction_table.write_predictions(workdir / f"predictions_{split}.csv", examples, table)
    files.write_json(workdir / f"evaluation_{split}.json", result)
    return result


def _on_data_of(config: ConfigDict, member: Member) -> ConfigDict:
    """The config with the data set of a member. Raises UserError where it asks for another one."""
    theirs, usual = member.trained.config.dataset, configs.default_config().dataset
    for key, value in config.dataset.items():
        if value not in (usual[key], theirs[key]):
            raise UserError(
                f"config.dataset.{key} is {value!r}, but an ensemble reads what its members read, and "
                f"{member.workdir} has {theirs[key]!r}: leave it out"
            )
    own, members = configs.to_json(config), configs.to_json(member.trained.config)
    return configs.from_json(own | {"dataset": members["dataset"]})


def _open_record(workdir: Path, settings: ConfigDict, members: Sequence[Member]) -> dict[str, Any]:
    """The content of run.json: that of a former attempt, or one that begins.

    Raises UserError where a member is another network than it was then.
    """
    if former := journal.read(workdir):
        check_unchanged(workdir, members, former["ensemble"])
        return former | record.environment()
    described = {"mix": settings.mix, "rule": settings.weights, "weights_from": settings.weights_from}
    described |= {"leak": LEAK} if settings.weights_from == "test" else {}
    described["members"] = [member.describe() for member in members]
    return {**record.environment(), "data": {}, "ensemble": described, "timings": {}}


def _identity(member: Member, examples: Examples) -> tuple[Any, ...]:
    """What is equal where the examples are, whatever their size in pixels; phantoms differ in nothing but the seed."""
    dataset = member.trained.config.dataset
    seed = dataset.seed if dataset.name == "phantom" else None
    return dataset.name, seed, examples.names, examples.labels.tolist(), examples.patients


def _notes(members: Sequence[Member], best: Candidate, rounds: int, settings: ConfigDict) -> list[str]:
    """What was chosen, in sentences."""
    if best.number is None:
        name = members[int(best.weights.argmax())].name
        note = f"no mixture was better than {name} alone on the {settings.weights_from} split: it has all the weight"
    else:
        shares = (f"{member.name} {weight:.3f}" for member, weight in zip(members, best.weights, strict=True))
        note = f"weights: {', '.join(shares)}"
        if settings.weights != "equal":
            note += (
                f", those of round {best.number} of {rounds}, the best on the {settings.weights_from} split (accuracy "
                f"{best.accuracy:.4f}, loss {best.loss:.4f})"
            )
    return [note, f"leak: {LEAK}"] if settings.weights_from == "test" else [note]
