import math
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from covidjax import optim
from covidjax.errors import UserError

RATE = 2.0**-9  # exact in float32, in which Keras keeps its rate
RULES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("adam", {}),
    ("adamw", {}),
    ("adamax", {}),
    ("rmsprop", {}),
    ("sgd", {"momentum": 0.0}),
    ("sgd", {"momentum": 0.9}),
    ("sgd", {"momentum": 0.9, "nesterov": True}),
)
KERAS_NAMES = {"adam": "Adam", "adamw": "AdamW", "adamax": "Adamax", "rmsprop": "RMSprop", "sgd": "SGD"}


def make_config(**changes: Any) -> ConfigDict:
    config = ConfigDict(
        {
            "name": "adam",
            "learning_rate": RATE,
            "momentum": 0.9,
            "nesterov": False,
            "schedule": "constant",
            "warmup_epochs": 0.0,
            "pct_start": 0.3,
            "step_epochs": (3, 6),
            "step_factor": 0.1,
            "weight_decay": 0.0,
            "clip_norm": 0.0,
            "plateau_factor": 0.7,
            "plateau_patience": 5,
            "plateau_min_delta": 1e-4,
            "plateau_min_learning_rate": 0.0,
        }
    )
    config.update(changes)
    return config


def make_params(dtype: Any = np.float32) -> dict[str, dict[str, np.ndarray]]:
    """Parameters of about 0.01: small, so that their rounding hides little of what a rule moves them by."""
    generator = np.random.default_rng(0)
    return {
        "head": {"kernel": (0.01 * generator.normal(size=(5, 3))).astype(dtype), "bias": np.full(3, 0.01, dtype)},
        "norm": {"scale": np.full(5, 0.02, dtype), "bias": np.full(5, 0.005, dtype)},
    }


def make_gradients(params: Any, steps: int = 30) -> list[Any]:
    """Random gradients whose scale falls from 1 to 1e-6."""
    generator = np.random.default_rng(1)

    def draw(scale: float) -> Any:
        return jax.tree.map(lambda leaf: (scale * generator.normal(size=leaf.shape)).astype(leaf.dtype), params)

    return [draw(scale) for scale in np.geomspace(1.0, 1e-6, steps).tolist()]


def dtypes(tree: Any) -> list[Any]:
    return [leaf.dtype for leaf in jax.tree.leaves(tree)]


def same_structure(tree: Any, other: Any) -> bool:
    return str(jax.tree.structure(tree)) == str(jax.tree.structure(other))


def train(config: ConfigDict, params: Any, gradients: list[Any]) -> Any:
    tx = optim.optimizer(config, optim.decay_mask)
    params = jax.tree.map(jnp.asarray, params)

    @jax.jit
    def step(params: Any, opt_state: Any, gradient: Any) -> tuple[Any, Any]:
        direction, opt_state = tx.update(gradient, opt_state, params)
        return jax.tree.map(lambda leaf, move: leaf - config.learning_rate * move, params, direction), opt_state

    opt_state = tx.init(params)
    for gradient in gradients:
        params, opt_state = step(params, opt_state, gradient)
    return params


@pytest.fixture
def keras(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    module = pytest.importorskip("keras", reason="Keras is not installed: no parity check")
    if module.backend.backend() != "jax":
        pytest.skip("Keras runs on another backend than jax: no parity check")
    return module


def keras_train(keras: Any, config: ConfigDict, options: dict[str, Any], params: Any, gradients: list[Any]) -> Any:
    leaves, structure = jax.tree.flatten(params)
    variables = [keras.Variable(leaf, dtype=str(leaf.dtype), name=f"leaf{index}") for index, leaf in enumerate(leaves)]
    rule = getattr(keras.optimizers, KERAS_NAMES[config.name])(
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        global_clipnorm=config.clip_norm or None,
        **options,
    )
    rule.exclude_from_weight_decay([variable for variable in variables if len(variable.shape) < 2])
    rule.build(variables)
    for gradient in gradients:
        rule.apply([jnp.asarray(leaf) for leaf in jax.tree.leaves(gradient)])
    return jax.tree.unflatten(structure, [np.asarray(variable.value) for variable in variables])


def parity_error(start: Any, ours: Any, theirs: Any) -> float:
    """The largest difference of an element, against the largest distance any element of its leaf has moved."""
    errors = jax.tree.map(
        lambda begin, our, their: np.max(np.abs(np.asarray(our) - their)) / np.max(np.abs(their - begin)),
        start,
        ours,
        theirs,
    )
    return float(max(jax.tree.leaves(errors)))


@pytest.mark.parametrize(("name", "options"), RULES)
@pytest.mark.parametrize("extras", [{}, {"weight_decay": 0.1, "clip_norm": 0.5}], ids=["plain", "decay_and_clip"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_each_rule_moves_parameters_as_keras_does(
    keras: Any, name: str, options: dict[str, Any], extras: dict[str, float], dtype: Any
) -> None:
    with jax.enable_x64(dtype == np.float64):
        config = make_config(name=name, **options, **extras)
        params = make_params(dtype)
        gradients = make_gradients(params)
        ours = train(config, params, gradients)
        theirs = keras_train(keras, config, options, params, gradients)
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(ours))
        assert parity_error(params, ours, theirs) < (1e-12 if dtype == np.float64 else 1e-5)


@pytest.mark.parametrize("name", ["adam", "adamax"])
@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4, 1e-6])
def test_small_gradients_keep_the_rules_of_keras(keras: Any, name: str, scale: float) -> None:
    with jax.enable_x64(True):
        config = make_config(name=name)
        params = make_params(np.float64)
        gradients = [jax.tree.map(lambda leaf: scale * leaf, tree) for tree in make_gradients(params)]
        theirs = keras_train(keras, config, {}, params, gradients)
        assert parity_error(params, train(config, params, gradients), theirs) < 1e-12


def test_adam_adds_epsilon_before_the_bias_correction() -> None:
    gradient = 1e-6
    params = {"kernel": jnp.zeros((1, 1))}
    tx = optim.optimizer(make_config(), optim.decay_mask)
    direction, _ = tx.update({"kernel": jnp.full((1, 1), gradient)}, tx.init(params), params)
    moment, size = 0.1 * gradient, math.sqrt(0.001) * gradient
    expected = math.sqrt(0.001) / 0.1 * moment / (size + 1e-7)
    np.testing.assert_allclose(direction["kernel"], expected, rtol=1e-4)
    assert expected < 0.3  # optax.scale_by_adam gives 0.91


def test_float32_leaves_stay_float32_with_x64_on() -> None:
    with jax.enable_x64(True):
        for name, options in RULES:
            config = make_config(name=name, weight_decay=0.1, clip_norm=1.0, **options)
            params = jax.tree.map(jnp.asarray, make_params())
            tx = optim.optimizer(config, optim.decay_mask)
            opt_state = tx.init(params)
            direction, new_state = tx.update(params, opt_state, params)
            assert dtypes(direction) == dtypes(params)
            assert dtypes(new_state) == dtypes(opt_state)
        for schedule_name in optim.SCHEDULES:
            schedule = optim.learning_rate_schedule(make_config(schedule=schedule_name), 10, 2)
            for dtype in (jnp.float32, jnp.float64):
                assert (schedule(jnp.int32(3)) * jnp.ones(2, dtype)).dtype == dtype


def test_decay_mask_leaves_biases_and_norms_alone() -> None:
    params = make_params()
    assert optim.decay_mask(params) == {
        "head": {"kernel": True, "bias": False},
        "norm": {"scale": False, "bias": False},
    }
    config = make_config(name="sgd", momentum=0.0, weight_decay=0.25)
    tx = optim.optimizer(config, optim.decay_mask)
    direction, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(direction["head"]["kernel"], 0.25 * params["head"]["kernel"])
    for leaf in (direction["head"]["bias"], direction["norm"]["scale"], direction["norm"]["bias"]):
        np.testing.assert_array_equal(leaf, 0.0)


@pytest.mark.parametrize(("name", "options"), RULES)
def test_holes_have_no_optimizer_slot_and_no_direction(name: str, options: dict[str, Any]) -> None:
    config = make_config(name=name, weight_decay=0.1, clip_norm=1.0, **options)
    head = make_params()["head"]
    with_hole = {"head": head, "norm": {"scale": optax.MaskedNode(), "bias": optax.MaskedNode()}}
    tx = optim.optimizer(config, optim.decay_mask)
    opt_state = tx.init(with_hole)
    assert {leaf.shape for leaf in jax.tree.leaves(opt_state)} <= {(5, 3), (3,), ()}
    assert len(jax.tree.leaves(opt_state)) == len(jax.tree.leaves(tx.init({"head": head})))
    direction, _ = jax.jit(tx.update)(with_hole, opt_state, with_hole)
    alone, _ = tx.update({"head": head}, tx.init({"head": head}), {"head": head})
    assert same_structure(direction, with_hole)
    for ours, expected in zip(jax.tree.leaves(direction), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_clipping_looks_at_the_trainable_tree_only() -> None:
    tx = optim.optimizer(make_config(name="sgd", momentum=0.0, clip_norm=1.0), optim.decay_mask)

    def direction(kernel: float, frozen: Any) -> Any:
        gradients = {"kernel": jnp.array([[kernel]]), "frozen": frozen}
        return tx.update(gradients, tx.init(gradients), gradients)[0]["kernel"].item()

    assert direction(0.5, optax.MaskedNode()) == pytest.approx(0.5)
    assert direction(4.0, optax.MaskedNode()) == pytest.approx(1.0)
    assert direction(0.5, jnp.array([[100.0]])) == pytest.approx(0.5 / 100.0, rel=1e-3)  # trainable: it counts


def test_state_structure_does_not_depend_on_clipping_or_decay() -> None:
    params = make_params()
    plain = optim.optimizer(make_config(), optim.decay_mask).init(params)
    full = optim.optimizer(make_config(clip_norm=1.0, weight_decay=0.1), optim.decay_mask).init(params)
    assert same_structure(plain, full)


def one_cycle_by_hand(step: int, total: int, pct_start: float, peak: float) -> float:
    top = pct_start * total - 1
    if step <= top:
        start, end, fraction = peak / 25, peak, step / top
    else:
        start, end, fraction = peak, peak / 25 / 1e4, (step - top) / (total - 1 - top)
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


@pytest.mark.parametrize(("total", "pct_start"), [(100, 0.3), (240, 0.25), (77, 0.43)])
def test_one_cycle_is_two_half_cosines(total: int, pct_start: float) -> None:
    schedule = jax.jit(
        optim.learning_rate_schedule(
            make_config(schedule="one_cycle", pct_start=pct_start, learning_rate=0.4), total, 5
        )
    )
    for step in {0, 1, 7, round(pct_start * total) - 1, total // 2, total - 2, total - 1}:
        assert float(schedule(step)) == pytest.approx(one_cycle_by_hand(step, total, pct_start, 0.4), abs=4e-7)
    assert float(schedule(0)) == pytest.approx(0.4 / 25)
    assert float(schedule(total - 1)) == pytest.approx(0.4 / 2.5e5, rel=1e-3)
    assert float(schedule(total + 100)) == float(schedule(total - 1))


def test_one_cycle_equals_torch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: no parity check")
    total = 90
    rule = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    reference = torch.optim.lr_scheduler.OneCycleLR(rule, max_lr=0.1, total_steps=total, cycle_momentum=False)
    schedule = jax.jit(optim.learning_rate_schedule(make_config(schedule="one_cycle", learning_rate=0.1), total, 9))
    for step in range(total):
        assert float(schedule(step)) == pytest.approx(rule.param_groups[0]["lr"], abs=1e-7)
        if step < total - 1:
            rule.step()
            reference.step()


@pytest.mark.parametrize("total", [2, 3, 4])
@pytest.mark.parametrize("schedule_name", optim.SCHEDULES)
def test_a_run_of_a_few_steps_has_finite_rates(schedule_name: str, total: int) -> None:
    schedule = jax.jit(optim.learning_rate_schedule(make_config(schedule=schedule_name, pct_start=1 / total), total, 1))
    rates = [float(schedule(step)) for step in range(total)]
    assert all(0 <= rate <= RATE for rate in rates)
    assert max(rates) > 0


@pytest.mark.parametrize("schedule_name", optim.SCHEDULES)
def test_a_run_of_one_step_uses_the_full_rate(schedule_name: str) -> None:
    schedule = optim.learning_rate_schedule(make_config(schedule=schedule_name), 1, 1)
    with jax.debug_nans(True):  # not under jit, so that each operation is looked at
        assert float(schedule(0)) == pytest.approx(RATE)


def test_cosine_warms_up_from_zero_and_decays_to_zero() -> None:
    config = make_config(schedule="cosine", warmup_epochs=0.5, learning_rate=0.2)
    schedule = jax.jit(optim.learning_rate_schedule(config, total_steps=100, steps_per_epoch=20))
    assert float(schedule(0)) == 0.0
    assert float(schedule(4)) == pytest.approx(0.08)
    assert float(schedule(10)) == pytest.approx(0.2)
    assert float(schedule(55)) == pytest.approx(0.1)
    assert float(schedule(40)) == pytest.approx(0.2 * (1 + math.cos(math.pi / 3)) / 2)
    assert float(schedule(100)) == pytest.approx(0.0, abs=1e-8)
    no_warmup = jax.jit(optim.learning_rate_schedule(make_config(schedule="cosine"), 100, 20))
    assert float(no_warmup(0)) == pytest.approx(RATE)


def test_step_schedule_changes_after_the_given_epochs() -> None:
    schedule = jax.jit(optim.learning_rate_schedule(make_config(schedule="step", learning_rate=1.0), 100, 10))
    rates = [float(schedule(step)) for step in (0, 29, 30, 59, 60, 99)]
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


def losses_of_a_run() -> list[float]:
    generator = np.random.default_rng(5)
    losses = np.exp(-np.arange(80) / 15) + 0.05 * generator.random(80)
    return [float(loss) for loss in losses.astype(np.float32)]


@pytest.mark.parametrize(
    ("patience", "factor", "min_delta"), [(5, 0.7, 1e-4), (2, 0.5, 1e-2), (1, 0.3, 0.0), (0, 0.9, 0.0)]
)
@pytest.mark.parametrize("min_rate", [0.0, 1e-4])
def test_plateau_equals_keras_epoch_by_epoch(
    keras: Any, patience: int, factor: float, min_delta: float, min_rate: float
) -> None:
    config = make_config(
        schedule="plateau",
        plateau_patience=patience,
        plateau_factor=factor,
        plateau_min_delta=min_delta,
        plateau_min_learning_rate=min_rate,
    )
    model = types.SimpleNamespace(optimizer=keras.optimizers.SGD(config.learning_rate))
    callback = keras.callbacks.ReduceLROnPlateau(
        monitor="loss", mode="min", factor=factor, patience=patience, min_delta=min_delta, min_lr=min_rate
    )
    callback.set_model(model)
    callback.on_train_begin()
    update = jax.jit(lambda state, loss: optim.plateau_update(state, loss, config))
    state = optim.plateau_init()
    ours, theirs = [], []
    losses = losses_of_a_run()
    losses[33] = math.nan
    for epoch, loss in enumerate(losses):
        callback.on_epoch_end(epoch, {"loss": loss})
        state = update(state, loss)
        ours.append(config.learning_rate * float(state.scale))
        theirs.append(float(model.optimizer.learning_rate))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert len(set(theirs)) > 2
    assert min_rate == 0.0 or patience == 5 or theirs[-1] == pytest.approx(min_rate)


def test_plateau_counts_nan_as_no_improvement() -> None:
    config = make_config(schedule="plateau", plateau_patience=3, plateau_factor=0.5)
    state = optim.plateau_init()
    scales = []
    for loss in (math.nan, 1.0, math.nan, math.nan, math.nan, 0.5, math.inf):
        state = optim.plateau_update(state, loss, config)
        scales.append(float(state.scale))
    assert scales == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5]
    assert float(state.best) == 0.5
    assert int(state.wait) == 1


def test_plateau_counts_an_equal_loss_as_no_improvement() -> None:
    config = make_config(schedule="plateau", plateau_patience=2, plateau_factor=0.5, plateau_min_delta=0.0)
    state = optim.plateau_init()
    for _ in range(3):
        state = optim.plateau_update(state, 1.0, config)
    assert float(state.scale) == 0.5


def test_plateau_never_raises_the_rate() -> None:
    config = make_config(schedule="plateau", plateau_patience=0, plateau_min_learning_rate=10 * RATE)
    state = optim.plateau_init()
    for _ in range(3):
        state = optim.plateau_update(state, 1.0, config)
    assert float(state.scale) == 1.0


def test_plateau_state_keeps_shapes_and_dtypes() -> None:
    with jax.enable_x64(True):
        state = optim.plateau_init()
        new_state = jax.jit(lambda state: optim.plateau_update(state, 1.0, make_config(schedule="plateau")))(state)
        assert jax.tree.map(jnp.shape, new_state) == jax.tree.map(jnp.shape, state)
        assert dtypes(new_state) == [jnp.float32, jnp.float32, jnp.int32]


def test_scale_stays_one_without_the_plateau_schedule() -> None:
    state = optim.plateau_init()
    for _ in range(20):
        state = optim.plateau_update(state, 1.0, make_config(schedule="cosine"))
    assert float(state.scale) == 1.0


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"schedule": "linear"},
        {"schedule": "cosine", "warmup_epochs": 10.0},
        {"schedule": "cosine", "warmup_epochs": -1.0},
        {"schedule": "step", "step_epochs": (6, 3)},
        {"schedule": "step", "step_epochs": (0, 3)},
        {"schedule": "step", "step_factor": 0.0},
        {"schedule": "one_cycle", "pct_start": 1.0},
        {"schedule": "plateau", "plateau_factor": 1.0},
        {"schedule": "plateau", "plateau_patience": -1},
        {"schedule": "plateau", "plateau_min_delta": math.nan},
    ],
)
def test_bad_schedule_values_are_named(changes: dict[str, Any]) -> None:
    key = [name for name in changes if name != "schedule"] or ["schedule"]
    with pytest.raises(UserError, match=rf"^optimizer\.{key[0]} is ") as caught:
        optim.learning_rate_schedule(make_config(**changes), total_steps=100, steps_per_epoch=10)
    assert "\n" not in str(caught.value)


def test_an_empty_schedule_is_refused() -> None:
    with pytest.raises(UserError, match="0 steps"):
        optim.learning_rate_schedule(make_config(), total_steps=0, steps_per_epoch=0)


@pytest.mark.parametrize(
    "changes", [{"name": "lion"}, {"clip_norm": -1.0}, {"weight_decay": math.inf}, {"name": "sgd", "momentum": 1.0}]
)
def test_bad_optimizer_values_are_named(changes: dict[str, Any]) -> None:
    key = list(changes)[-1]
    with pytest.raises(UserError, match=rf"^optimizer\.{key} is ") as caught:
        optim.optimizer(make_config(**changes), optim.decay_mask)
    assert "\n" not in str(caught.value)
