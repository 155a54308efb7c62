"""The devices of a target, for XLA to compile for; the process that asks for them has no others but its CPU."""

from typing import Any

import jax
from jax.experimental import topologies

from covidjax.errors import UserError
from covidjax.targets.catalog import Target


def devices_of(target: Target) -> list[Any]:
    """The devices, in the order of the topology. Raises UserError for a topology that the maker does not build."""
    if target.chip.platform == "cuda":
        from jax_plugins import xla_cuda13  # type: ignore[import-not-found]  # noqa: PLC0415 - of .venv-targets only

        try:
            xla_cuda13.initialize()
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):  # raised after it has registered
                raise
        shape = "x".join(map(str, (1, *target.topology)))
        spec = {"topology": shape, "target_config": target.chip.spec}
        return list(topologies.get_topology_desc("x", platform="cuda", **spec).devices)
    options: dict[str, Any] = {}
    if target.chip.megacore:
        options["chip_config_name"] = "megacore"
    if any(size % host for size, host in zip(target.topology, (2, 2, 1), strict=False)):
        options["chips_per_host_bounds"] = (*target.topology, 1)[:3]
    name = f"{target.name.partition(':')[0]}:{'x'.join(map(str, target.topology))}"
    try:
        return list(topologies.get_topology_desc(name, platform="tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"target {target.name}: {' '.join(str(error).split())[:200]}: choose another topology"
        ) from error
