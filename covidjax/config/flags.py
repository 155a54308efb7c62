"""The flags of a command that takes a config: its own, `--config=FILE.py[:ARGUMENT]`, and `--config.key=value`."""

import argparse
from collections.abc import Sequence

from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import models
from covidjax.errors import UserError


def parse_with_config(
    parser: argparse.ArgumentParser, arguments: Sequence[str], *, ensembles: bool = False
) -> tuple[argparse.Namespace, ConfigDict]:
    """The parser's own flags, and the validated config of `--config=... --config.key=value`.

    ensembles: whether the command takes one in place of a network. Raises UserError for what is neither flag nor key.
    """
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARGUMENT]", help="the config of the experiment")
    parser.epilog = "Any key of the config can be changed: --config.optimizer.learning_rate=3e-4"
    overrides = [argument for argument in arguments if argument.startswith("--config.")]
    flags, unknown = parser.parse_known_args([argument for argument in arguments if argument not in overrides])
    if unknown:
        known = ", ".join(sorted(action.option_strings[-1] for action in parser._actions if action.option_strings))
        raise UserError(f"unknown argument {unknown[0]!r}: allowed are {known} and --config.key=value")
    config = configs.load(flags.config, overrides)
    if config.model.name == models.ENSEMBLE and not ensembles:
        raise UserError(
            f"config.model.name is 'ensemble', and {parser.prog} works on one network: name one of the networks, or "
            "make the ensemble with launch/train.py"
        )
    return flags, config
