"""Plain Flax linen and optax: one jitted step with donated state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from benchmarks import work
from benchmarks.case import Case
from benchmarks.jax_subject import JaxSubject, inference_subject, parameter_counts, train_subject
from benchmarks.peers.flax_networks import Network


def make_network(case: Case) -> Network:
    """The network of a case."""
    dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[case.precision]
    return Network(case.model, work.width(case), work.network(case.model).classes, dtype, work.frozen_stages(case))


def load(variables: Any) -> Any:
    """Our variables as this network's: linen's transposed convolution turns its kernel round."""

    def turned(path: Any, leaf: jax.Array) -> jax.Array:
        names = [entry.key for entry in path]
        return leaf[::-1, ::-1] if "up_conv" in names and names[-1] == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(turned, variables)


def build(case: Case, variables: Any = None) -> JaxSubject:
    """A `case.Subject`. variables: our start weights; None: fresh ones of its own."""
    return _build(case, variables, log_norm=False)


def build_norm_logged(case: Case, variables: Any = None) -> JaxSubject:
    """The same with one more line in its step: the norm of the gradients, as many loops log it."""
    return _build(case, variables, log_norm=True)


def _build(case: Case, variables: Any, *, log_norm: bool) -> JaxSubject:
    work.check(case)
    network = make_network(case)
    images, labels = jax.device_put(work.batch(case))
    if variables is None:
        variables = jax.jit(network.init, static_argnums=2)(jax.random.key(0), normalise(images), False)
    else:
        variables = load(variables)
    params = variables["params"]
    if case.mode == "inference":
        forward = jax.jit(lambda variables, images: network.apply(variables, normalise(images), False))
        return inference_subject(forward, variables, images, parameter_counts(params, (), ()))
    frozen = work.frozen_stages(case)
    trainable = {stage: value for stage, value in params.items() if stage not in frozen}
    carry = make_carry(case, variables, log_norm=log_norm)
    counts = parameter_counts(params, trainable, carry[2])
    return train_subject(make_step(case, log_norm=log_norm), carry, (images, labels), counts)


def make_carry(case: Case, variables: Any, *, log_norm: bool) -> Any:
    """What a step begins with: (params, batch_stats, opt_state, what is logged), of copies of the variables."""
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    zero = jnp.zeros(())
    logged = {"loss": zero, "norm": zero + 0} if log_norm else {"loss": zero}
    return jax.tree.map(jnp.array, (params, batch_stats, optimizer(case).init(params), logged))


def optimizer(case: Case) -> optax.GradientTransformation:
    """Adam of the stages that are not frozen."""
    frozen = work.frozen_stages(case)
    stages = work.network(case.model).stages
    labels = {stage: "freeze" if stage in frozen else "train" for stage in stages}
    rules = {"train": optax.adam(work.LEARNING_RATE), "freeze": optax.set_to_zero()}
    return optax.multi_transform(rules, labels) if frozen else rules["train"]


def make_step(case: Case, *, log_norm: bool, **shardings: Any) -> Any:
    """The jitted step, (carry, images, labels) -> carry, its carry donated. shardings: as `jax.jit` takes them."""
    network, tx = make_network(case), optimizer(case)

    def step(carry: Any, images: jax.Array, labels: jax.Array) -> Any:
        params, batch_stats, opt_state, _ = carry
        (loss, batch_stats), grads = gradients(network, params, batch_stats, images, labels)
        updates, opt_state = tx.update(grads, opt_state, params)
        logged = {"loss": loss, "norm": optax.tree.norm(grads)} if log_norm else {"loss": loss}
        return optax.apply_updates(params, updates), batch_stats, opt_state, logged

    return jax.jit(step, donate_argnums=0, **shardings)


def gradients(network: Network, params: Any, batch_stats: Any, images: jax.Array, labels: jax.Array) -> Any:
    """((loss, new statistics), gradients of all parameters)."""

    def loss_fn(params: Any) -> Any:
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updated = network.apply(variables, normalise(images), True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
        return jnp.mean(losses), {**batch_stats, **updated.get("batch_stats", {})}

    return jax.value_and_grad(loss_fn, has_aux=True)(params)


def normalise(images: jax.Array) -> jax.Array:
    """Pixels to what the network takes."""
    return (images.astype(jnp.float32) * work.SCALE - work.MEAN) / work.STD


def loss_and_gradients(case: Case, variables: Any) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of the first step from our variables, and its gradients by our paths and in our layout."""
    variables = load(variables)
    images, labels = jax.device_put(work.batch(case))
    compute = jax.jit(gradients, static_argnums=0)
    (loss, _), grads = compute(make_network(case), variables["params"], variables["batch_stats"], images, labels)
    flat = traverse_util.flatten_dict(load(grads), sep="/")
    return float(loss), {path: np.asarray(value) for path, value in flat.items()}
