import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from jax.sharding import Mesh
from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import files
from covidjax.data.examples import Examples
from covidjax.errors import UserError
from covidjax.evaluate.network import Forward, answers, make_forward, predict
from covidjax.evaluate.split import evaluate_split
from covidjax.losses import sigmoid_cross_entropy, softmax_cross_entropy
from covidjax.mesh import make_mesh
from covidjax.metrics.classification import classification_report
from covidjax.metrics.prediction_table import read_predictions
from covidjax.models.preprocessing import Preprocessing, fresh
from covidjax.runs.record import describe
from covidjax.tasks.classification import CLASSIFICATION
from covidjax.train.state import TrainState
from covidjax.weights import inputs
from covidjax.weights.workdir import load_trained, open_checkpoints
from tests.report import made_workdir
from tests.support import make_model, make_recipe, make_state, make_variables, small_config

CLASSES = ("covid19", "normal", "pneumonia")
COUNTS = (1, 31, 33)
BATCH_SIZES = (1, 7, 32)
Network = tuple[Forward, dict[str, Any], Mesh, np.ndarray]


def tiny_config(**changes: Any) -> ConfigDict:
    return small_config("cnn", model__width=2, model__num_blocks=2, dataset__image_size=16, **changes)


def draw_variables(config: ConfigDict, seed: int = 0) -> dict[str, Any]:
    """Weights and statistics that differ with the seed."""
    return jax.tree.map(lambda leaf: (1 + seed) * leaf, make_variables(make_model(config), 16))


def draw_examples(count: int, classes: tuple[str, ...] = CLASSES) -> Examples:
    generator = np.random.default_rng(1)
    levels = generator.uniform(0, 255, (count, 1, 1, 1))
    images = np.clip(levels + generator.normal(0, 40, (count, 16, 16, 1)), 0, 255).astype(np.uint8)
    return made_workdir.make_examples("val", images, classes)


def plain_figures(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Loss and accuracy as one would write them down, in float64, and what scikit-learn says of the rest."""
    logits = logits.astype(np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    loss = -log_probabilities[np.arange(len(labels)), labels].mean()
    guess, present = logits.argmax(1), sorted(set(labels.tolist()))
    recalls = sklearn.metrics.recall_score(labels, guess, labels=present, average=None)
    scores = sklearn.metrics.f1_score(labels, guess, labels=present, average=None)
    areas = [math.nan]
    if len(present) > 1:
        areas = [sklearn.metrics.roc_auc_score(labels == k, np.exp(log_probabilities[:, k])) for k in present]
    rest = {"auroc": np.mean(areas), "macro_f1": np.mean(scores), "balanced_accuracy": np.mean(recalls)}
    return {"loss": loss, "accuracy": float((guess == labels).mean()), **rest}


@pytest.fixture(scope="module")
def network() -> Network:
    """A compiled network, its weights, its mesh, and its logits of the largest split in one batch."""
    config = tiny_config()
    variables, mesh = draw_variables(config), make_mesh(8)
    model = make_model(config)
    forward = make_forward(model, Preprocessing(), mesh)
    images = (jnp.asarray(draw_examples(max(COUNTS)).images, jnp.float32) / 255 - 0.5) / 0.25
    apply = jax.jit(model.apply)
    variables["params"]["head"]["dense"]["bias"] -= apply(variables, images).mean(0)
    logits = np.asarray(apply(variables, images))
    assert len(set(logits.argmax(1))) > 1
    return forward, variables, mesh, logits


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_every_example_counts_once_whatever_the_batch_size(network: Network, batch_size: int, count: int) -> None:
    forward, variables, mesh, all_logits = network
    whole = draw_examples(max(COUNTS))
    examples = dataclasses.replace(whole, images=whole.images[:count], labels=whole.labels[:count])
    logits = predict(forward, variables, examples.images, batch_size, mesh)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, all_logits[:count], rtol=1e-5, atol=1e-5)
    batches = answers(forward, variables, examples.images, examples.labels, batch_size, mesh)
    found = CLASSIFICATION.measure(batches, softmax_cross_entropy, "softmax_cross_entropy")
    assert found == pytest.approx(plain_figures(all_logits[:count], examples.labels), rel=1e-5, nan_ok=True)


def test_the_other_loss_is_measured_too(network: Network) -> None:
    forward, variables, mesh, logits = network
    examples = draw_examples(33)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    targets = np.eye(3)[examples.labels]
    expected = -(targets * np.log(probabilities) + (1 - targets) * np.log1p(-probabilities)).mean()
    batches = answers(forward, variables, examples.images, examples.labels, 7, mesh)
    found = CLASSIFICATION.measure(batches, sigmoid_cross_entropy, "sigmoid_cross_entropy")
    assert found["loss"] == pytest.approx(expected, rel=1e-4)


def write_run(workdir: Path, config: ConfigDict, seeds: dict[int, tuple[int, float | None]]) -> dict[int, TrainState]:
    """A workdir as training leaves it. seeds: the step of each checkpoint -> the seed of its weights and its metric."""
    workdir.mkdir()
    files.write_json(workdir / "config.json", configs.to_json(config))
    preprocessing = json.loads(inputs.encode(fresh(config.dataset.channels)))
    record = {"data": {"train": describe(draw_examples(320), CLASSIFICATION)}, "preprocessing": preprocessing}
    files.write_json(workdir / "run.json", record)
    states = {}
    with open_checkpoints(workdir, config) as checkpoints:
        for step, (seed, metric) in seeds.items():
            variables = draw_variables(config, seed)
            state = make_state(make_recipe(config, make_model(config), variables), variables)
            states[step] = dataclasses.replace(state, step=jnp.int32(step))
            checkpoints.save(step, states[step], {}, metric)
    return states


def test_evaluation_writes_what_the_report_says_of_its_own_table(tmp_path: Path) -> None:
    config = tiny_config()
    workdir, examples = tmp_path / "run", draw_examples(33)
    write_run(workdir, config, {10: (0, 0.5), 20: (3, 0.7)})
    result = evaluate_split(workdir, load_trained(workdir, "best"), examples)
    assert json.loads((workdir / "evaluation_val.json").read_text()) == result
    assert result["checkpoint"] == {"step": 10, "which": "best"}

    table = read_predictions(workdir / "predictions_val.csv")
    assert (table.names, table.patients, table.classes) == (examples.names, examples.patients, CLASSES)
    np.testing.assert_array_equal(table.labels, examples.labels)
    expected = classification_report(table.probabilities, examples, result["loss"])
    assert {key: value for key, value in result.items() if key not in ("checkpoint", "notes")} == expected

    model = make_model(config)
    images = (jnp.asarray(examples.images, jnp.float32) / 255 - 0.5) / 0.25
    logits = np.asarray(jax.jit(model.apply)(draw_variables(config, 0), images))
    figures = plain_figures(logits, examples.labels)
    found = {**result, "auroc": result["macro_auroc"]}
    assert {name: found[name] for name in figures} == pytest.approx(figures, rel=1e-5)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(table.probabilities, probabilities, rtol=1e-4, atol=1e-6)


def test_the_checkpoint_that_is_asked_for_is_loaded_and_the_latest_where_none_is_best(tmp_path: Path) -> None:
    states = write_run(tmp_path / "run", tiny_config(), {10: (0, 0.5), 20: (1, 0.7)})
    for which, step in (("best", 10), ("latest", 20), (10, 10)):
        trained = load_trained(tmp_path / "run", which)  # type: ignore[arg-type]
        assert (trained.step, trained.which, trained.classes) == (step, which, CLASSES)
        jax.tree.map(np.testing.assert_array_equal, trained.variables["params"], states[step].params)
    for chosen, step in (("best", 10), ("last", 20)):
        write_run(tmp_path / chosen, tiny_config(checkpoint__evaluate=chosen), {10: (0, 0.5), 20: (1, 0.7)})
        assert load_trained(tmp_path / chosen, None).step == step
    write_run(tmp_path / "other", tiny_config(), {10: (0, None)})
    trained = load_trained(tmp_path / "other", "best")
    assert (trained.step, trained.which) == (10, "latest")


def test_a_run_with_averages_is_evaluated_on_them(tmp_path: Path) -> None:
    config = tiny_config(ema_decay=0.9, freeze="until:block1")
    workdir = tmp_path / "run"
    states = write_run(workdir, config, {10: (0, 0.5)})
    with open_checkpoints(workdir, config) as checkpoints:
        doubled = jax.tree.map(lambda leaf: 2 * leaf, states[10].average)
        checkpoints.save(20, dataclasses.replace(states[10], average=doubled), {}, 0.4)
    variables = load_trained(workdir, "best").variables
    for kind, whole in (("params", states[10].params), ("batch_stats", states[10].batch_stats)):
        for stage in whole:
            expected = whole[stage] if stage == "block1" else jax.tree.map(lambda leaf: 2 * leaf, whole[stage])
            jax.tree.map(np.testing.assert_array_equal, variables[kind][stage], expected)


def test_other_classes_are_refused(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    write_run(workdir, tiny_config(), {10: (0, 0.5)})
    trained = load_trained(workdir, "best")
    with pytest.raises(UserError, match="classes of the val split are a, b, c; the network of .* knows covid19, "):
        evaluate_split(workdir, trained, draw_examples(3, ("a", "b", "c")))
    assert not list(workdir.glob("*_val.*"))
