"""The rules of the optimizers, beside those of Keras and PyTorch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from covidjax import optim
from tests.optim.settings import dtypes, make_config

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


def same_structure(tree: Any, other: Any) -> bool:
    return str(jax.tree.structure(tree)) == str(jax.tree.structure(other))


def train(config: ConfigDict, params: Any, gradients: list[Any]) -> Any:
    tx = optim.optimizer(config)
    params = jax.tree.map(jnp.asarray, params)

    @jax.jit
    def step(params: Any, opt_state: Any, gradient: Any) -> tuple[Any, Any]:
        direction, opt_state = tx.update(gradient, opt_state, params)
        return jax.tree.map(lambda leaf, move: leaf - config.learning_rate * move, params, direction), opt_state

    opt_state = tx.init(params)
    for gradient in gradients:
        params, opt_state = step(params, opt_state, gradient)
    return params


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
@pytest.mark.parametrize(("dtype", "extras"), [(np.float32, {}), (np.float64, {"weight_decay": 0.1, "clip_norm": 0.5})])
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


def test_float32_leaves_stay_float32_with_x64_on() -> None:
    with jax.enable_x64(True):
        for name, options in RULES:
            config = make_config(name=name, weight_decay=0.1, clip_norm=1.0, **options)
            params = jax.tree.map(jnp.asarray, make_params())
            tx = optim.optimizer(config)
            opt_state = tx.init(params)
            direction, new_state = tx.update(params, opt_state, params)
            assert dtypes(direction) == dtypes(params)
            assert dtypes(new_state) == dtypes(opt_state)
        for schedule_name in optim.SCHEDULES:
            schedule = optim.learning_rate_schedule(make_config(schedule=schedule_name), 10, 2)
            for dtype in (jnp.float32, jnp.float64):
                assert (schedule(jnp.int32(3)) * jnp.ones(2, dtype)).dtype == dtype


def test_each_leaf_decays_at_its_own_rate() -> None:
    params = {name: jnp.full((2, 2), 2.0) for name in ("off", "weak", "strong")} | {"bias": jnp.ones(2)}
    decays = {"off": 0.0, "weak": 0.125, "strong": 0.5, "bias": 0.5, "frozen": optax.MaskedNode()}
    config = make_config(name="sgd", momentum=0.0, weight_decay=0.25)  # what the tree says holds
    with_hole = params | {"frozen": optax.MaskedNode()}
    tx = optim.optimizer(config, decays)
    direction, _ = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, with_hole), tx.init(with_hole), with_hole)
    found = {name: float(leaf.max()) for name, leaf in direction.items() if name != "frozen"}
    assert found == {"off": 0.0, "weak": 0.25, "strong": 1.0, "bias": 0.0}
    assert same_structure(tx.init(with_hole), optim.optimizer(make_config(name="sgd", momentum=0.0)).init(with_hole))


@pytest.mark.parametrize(("name", "options"), RULES)
def test_holes_have_no_optimizer_slot_and_no_direction(name: str, options: dict[str, Any]) -> None:
    config = make_config(name=name, weight_decay=0.1, clip_norm=1.0, **options)
    head = make_params()["head"]
    with_hole = {"head": head, "norm": {"scale": optax.MaskedNode(), "bias": optax.MaskedNode()}}
    tx = optim.optimizer(config)
    opt_state = tx.init(with_hole)
    assert {leaf.shape for leaf in jax.tree.leaves(opt_state)} <= {(5, 3), (3,), (2,)}  # kernel, bias, two counts
    assert len(jax.tree.leaves(opt_state)) == len(jax.tree.leaves(tx.init({"head": head})))
    direction, _ = jax.jit(tx.update)(with_hole, opt_state, with_hole)
    alone, _ = tx.update({"head": head}, tx.init({"head": head}), {"head": head})
    assert same_structure(direction, with_hole)
    for ours, expected in zip(jax.tree.leaves(direction), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_clipping_looks_at_the_trainable_tree_only() -> None:
    tx = optim.optimizer(make_config(name="sgd", momentum=0.0, clip_norm=1.0))

    def direction(kernel: float, frozen: Any) -> Any:
        gradients = {"kernel": jnp.array([[kernel]]), "frozen": frozen}
        return tx.update(gradients, tx.init(gradients), gradients)[0]["kernel"].item()

    assert direction(0.5, optax.MaskedNode()) == pytest.approx(0.5)
    assert direction(4.0, optax.MaskedNode()) == pytest.approx(1.0)
    assert direction(0.5, jnp.array([[100.0]])) == pytest.approx(0.5 / 100.0, rel=1e-3)  # trainable: it counts


@pytest.mark.parametrize("schedule_name", ["constant", "fastai_one_cycle"])
def test_adam_with_other_betas_equals_torch_step_by_step(schedule_name: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: no parity check")
    config = make_config(name="adamw", beta_1=0.8, beta_2=0.99, schedule=schedule_name, learning_rate=1e-2)
    params = make_params(np.float64)["head"]
    gradients = [gradient["head"] for gradient in make_gradients({"head": params}, 20)]
    with jax.enable_x64(True):
        tx, total = optim.optimizer(config), len(gradients)
        momentum = optim.momentum_schedule(config, total)
        state, ours = tx.init(params), jax.tree.map(jnp.asarray, params)
        theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
        rule = torch.optim.Adam(theirs.values(), lr=1e-2, betas=(0.8, 0.99), eps=0.0)
        for step, gradient in enumerate(gradients):
            extra = {} if momentum is None else {"momentum": momentum(step)}
            direction, state = tx.update(gradient, state, ours, **extra)
            ours = jax.tree.map(lambda value, moved: value - 1e-2 * moved, ours, direction)
            for name, value in gradient.items():
                theirs[name].grad = torch.tensor(value)
            rule.param_groups[0]["betas"] = (float(extra.get("momentum", 0.8)), 0.99)
            rule.step()
    for name, value in theirs.items():
        # Keras' epsilon of 1e-7 beside gradients down to 1e-6.
        np.testing.assert_allclose(ours[name], value.detach().numpy(), rtol=2e-2, atol=1e-4)
