"""What every command in `launch/` shares: its arguments, and errors for the person at the keyboard."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import jax
from ml_collections import ConfigDict

from covidjax import config as configs
from covidjax import models, processor
from covidjax.allocator import keep_memory
from covidjax.data.image_cache import cache_dir
from covidjax.errors import UserError

STOPPED_BY_SIGTERM = 143
STOPPED_BY_SIGPIPE = 141
WHICH = "best (default), latest, or a step"


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line, like all errors of a command."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message}: see --help")


def which(text: str) -> str | int:
    """The value of --checkpoint: 'best', 'latest' or a step."""
    if text in ("best", "latest"):
        return text
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is none of best, latest and the number of a step")


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


def prepare_process(precision: str) -> str:
    """Settings of the whole process, before the first array is made; returns what became of the allocator.

    Compiled programs are kept in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names another.
    """
    if precision == "float64":
        jax.config.update("jax_enable_x64", True)
    if getattr(jax.config, "jax_compilation_cache_dir") is None:  # noqa: B009 (the type checker does not know it)
        jax.config.update("jax_compilation_cache_dir", str(cache_dir("") / "programs" / processor.name()))
    return keep_memory()


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a command: one line and exit status 2 for a mistake, no traceback."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        fail(str(error))
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(STOPPED_BY_SIGPIPE)
    except OSError as error:
        fail(f"{error.filename or 'a file'}: {error.strerror or error}")
    except KeyboardInterrupt:
        print("\ninterrupted: a training run goes on from its last checkpoint with the same command", file=sys.stderr)
        sys.exit(130)


def fail(message: str) -> None:
    """Prints one line on standard error and ends with status 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
