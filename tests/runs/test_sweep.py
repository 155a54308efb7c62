import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from covidjax import losses
from covidjax.models.preprocessing import Preprocessing
from covidjax.runs.heads import Head, Heads, HeadSettings, train_heads
from covidjax.train import features
from covidjax.train.inputs import make_inputs
from covidjax.train.loop import next_epoch
from covidjax.train.parallel import mapped_step
from covidjax.train.phases import evaluation_variables
from covidjax.train.setup import prepare
from covidjax.weights import inputs
from tests.commands import user_error
from tests.support import TINY, make_model, make_variables, small_config
from tests.train.cached import passes

EPOCHS = 4
SWEPT: dict[str, Any] = {**TINY, "epochs": EPOCHS, "freeze": "backbone", "precision": "float64"}
WEIGHTS = (1.0, 2.5, 0.5)
RATES, DECAYS, CLASS_WEIGHTS, SEEDS = (1e-3, 2e-2), (0.0, 0.3), ("none", WEIGHTS), (3, 4)
# Two opposite corners each, which tell apart any two knobs that were mixed up.
ALONE = {
    "plateau": (HeadSettings(2e-2, 0.0, WEIGHTS, 3), HeadSettings(1e-3, 0.3, "none", 4)),
    "one_cycle": (HeadSettings(2e-2, 0.0, "none", 4), HeadSettings(1e-3, 0.3, WEIGHTS, 3)),
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a run that starts from a file of weights without a head, as `small_config` takes them."""
    folder = tmp_path_factory.mktemp("sweep")
    with jax.enable_x64(True):
        variables = make_variables(make_model(small_config("cnn", **SWEPT)), 16)
    leaves = traverse_util.flatten_dict(variables, sep="/")
    prefix = {name: np.asarray(leaf) for name, leaf in leaves.items() if "head" not in name}
    save_file(prefix, folder / "prefix.safetensors", {"preprocessing": inputs.encode(Preprocessing())})
    return {**SWEPT, "pretrained": str(folder / "prefix.safetensors"), "dataset__cache_dir": str(folder / "cache")}


def sweep(settings: dict[str, Any], said: Callable[[str], None] = lambda line: None) -> Heads:
    return train_heads(small_config("cnn", **settings), RATES, DECAYS, CLASS_WEIGHTS, SEEDS, said)


def run_alone(settings: dict[str, Any], setting: HeadSettings) -> Head:
    """What a run of its own comes to, with the steps and the epochs of the training loop."""
    own = {
        "optimizer__learning_rate": setting.learning_rate,
        "optimizer__weight_decay": setting.weight_decay,
        "loss__class_weights": setting.class_weights,
        "seed": setting.seed,
    }
    config = small_config("cnn", **settings | own)
    job = prepare(config)
    phase, recipe, state = job.phases[0], job.recipes[0], job.fresh_state()
    feed = make_inputs(job, phase, job.variables, passes(features.feature_store(config.dataset.cache_dir).folder))
    step, figures = mapped_step(recipe, job.mesh, resident=True), []
    for epoch in range(EPOCHS):
        span = (epoch * job.steps_per_epoch, (epoch + 1) * job.steps_per_epoch)
        for _, arguments in feed.calls(job.mesh, "jit", setting.seed, config.batch_size, span, 1):
            state = step(state, *arguments)
        variables = evaluation_variables(state, recipe.plan)
        logits = forward(recipe.model, variables, feed.val, feed.start)
        labels = job.val_split.labels
        loss = float(jnp.mean(losses.softmax_cross_entropy(logits, jnp.asarray(labels))))
        figures.append((loss, float(np.mean(np.argmax(logits, -1) == labels))))
        loss_of_epoch = float(state.metrics.loss) / int(state.metrics.steps)
        state = next_epoch(state, loss_of_epoch, phase.optimizer, job.mesh)
    best = max(range(EPOCHS), key=lambda epoch: (-figures[epoch][0], epoch))
    chosen, last = ({"loss": loss, "accuracy": accuracy} for loss, accuracy in (figures[best], figures[-1]))
    return Head(setting, best + 1, chosen, last)


@functools.partial(jax.jit, static_argnums=(0, 3))
def forward(model: Any, variables: Any, inputs: Any, start: str) -> jax.Array:
    return model.apply(variables, inputs, start=start)


def assert_same(found: Sequence[Head], expected: Head, tolerance: float = 1e-8) -> None:
    (own,) = [head for head in found if head.settings == expected.settings]
    assert own.best_epoch == expected.best_epoch
    assert own.best == pytest.approx(expected.best, rel=tolerance)
    assert own.last == pytest.approx(expected.last, rel=tolerance)


SCHEDULES: dict[str, dict[str, Any]] = {
    # Nothing counts as an improvement, and the lower rate is below the floor from the start.
    "plateau": {
        "optimizer__plateau_patience": 1,
        "optimizer__plateau_factor": 0.5,
        "optimizer__plateau_min_delta": 10.0,
        "optimizer__plateau_min_learning_rate": 7e-3,
    },
    "one_cycle": {"optimizer__clip_norm": 0.5, "model__dropout": 0.3, "accumulation_steps": 2},
}


@pytest.mark.parametrize("schedule", [pytest.param("plateau", marks=pytest.mark.slow), "one_cycle"])
def test_heads_of_a_sweep_come_to_what_runs_of_their_own_come_to(settings: dict[str, Any], schedule: str) -> None:
    settings = {**settings, "optimizer__schedule": schedule, **SCHEDULES[schedule]}
    with jax.enable_x64(True):
        said: list[str] = []
        result = sweep(settings, said.append)
        assert len(result.heads) == len({outcome.settings for outcome in result.heads}) == 16
        assert len({outcome.last["loss"] for outcome in result.heads}) == 16
        for setting in ALONE[schedule]:
            assert_same(result.heads, run_alone(settings, setting))
    best = min(outcome.last["loss"] for outcome in result.heads)
    assert len(said) == EPOCHS
    assert said[-1] == f"epoch {EPOCHS}/{EPOCHS}  best val loss {best:.4f}"


@pytest.mark.slow
def test_trained_stages_behind_the_prefix_come_to_the_same_with_everything_on(settings: dict[str, Any]) -> None:
    settings = {
        **settings,
        "freeze": "until:block1",
        "ema_decay": 0.9,
        "lr_scale": (("block2", 0.1),),
        "augment__brightness": 0.2,
        "feature_views": 2,
        "optimizer__schedule": "cosine",
        "optimizer__warmup_epochs": 1.0,
        "model__dropout": 0.3,
    }
    with jax.enable_x64(True):
        result = sweep(settings)
        for setting in (*ALONE["plateau"], *ALONE["one_cycle"]):
            assert_same(result.heads, run_alone(settings, setting))


@pytest.mark.slow
def test_single_seed_without_pretrained_weights_has_the_prefix_of_that_seed(settings: dict[str, Any]) -> None:
    settings = {**settings, "pretrained": "", "seed": 0}
    with jax.enable_x64(True):
        result = train_heads(small_config("cnn", **settings), (1e-2,), (0.0,), ("none",), (5,), lambda line: None)
        assert_same(result.heads, run_alone(settings, HeadSettings(1e-2, 0.0, "none", 5)))


def test_best_epoch_is_by_the_figure_of_the_config_and_the_later_of_equal_ones(settings: dict[str, Any]) -> None:
    with jax.enable_x64(True):
        config = small_config("cnn", **settings, checkpoint__best="accuracy", optimizer__learning_rate=1e-9)
        result = train_heads(config, (1e-9,), (0.0,), ("none",), (3,), lambda line: None)  # which changes no answer
    (outcome,) = result.heads
    assert outcome.best_epoch == EPOCHS
    assert result.num_val == 6


REFUSED: list[tuple[dict[str, Any], Sequence[int], str]] = [
    ({"features": "off"}, (0,), "from cached features on the device: features: not cached (config.features is off)"),
    (
        {"freeze": "none"},
        (0,),
        "a sweep trains heads on one frozen prefix, and config.freeze 'none' leaves the first stage to train: give "
        "--config.freeze=backbone, which trains head alone, or until:<stage>, with a stage of block1, block2",
    ),
    ({"freeze": "none", "augment__flip": True}, (0,), "block2; and --config.feature_views=K, as the images are"),
    ({"augment__flip": True}, (0,), "config.feature_views=K"),
    ({"phases": ({"steps": 5},)}, (0,), "empty config.phases"),
    ({"phases": ({"epochs": 2}, {"epochs": 1})}, (0,), "empty config.phases"),
    ({"freeze": "gradual:1"}, (0,), "'gradual:1', one strategy for all epochs"),
    ({"weight_decays": (("head", 0.1),)}, (0,), "empty config.weight_decays"),
    ({"checkpoint__best": "auroc"}, (0,), "measures loss and accuracy alone, and config.checkpoint.best is 'auroc'"),
    ({"early_stopping__patience": 2}, (0,), "set config.early_stopping.patience to 0"),
    ({"augment__mixup": 0.2}, (0,), "config.augment.mixup and cutmix mix images"),
    ({"pretrained": ""}, (0, 1), "with random initialisation every seed has a frozen prefix"),
]


@pytest.mark.parametrize(("changes", "seeds", "said"), REFUSED)
def test_what_a_sweep_cannot_do_is_refused_in_one_line(
    settings: dict[str, Any], changes: dict[str, Any], seeds: Sequence[int], said: str
) -> None:
    config = small_config("cnn", **settings | {"precision": "float32"} | changes)
    assert said in user_error(train_heads, config, (1e-3,), (0.0,), ("none",), seeds, lambda line: None)
