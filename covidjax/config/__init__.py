"""The config of a run: every key with its default, and how a file and the command line change them."""

from covidjax.config.checks import flatten, lora_rank, trains_on_val, validate
from covidjax.config.load import default_config, from_json, load, of_workdir, to_json

__all__ = [
    "default_config",
    "flatten",
    "from_json",
    "load",
    "lora_rank",
    "of_workdir",
    "to_json",
    "trains_on_val",
    "validate",
]
