"""What the benchmark commands share on their side of the pipes; without JAX, whose device belongs to the workers."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from benchmarks.case import IMPLEMENTATIONS, missing
from benchmarks.harness import Protocol, check_protocol
from covidjax.errors import UserError
from covidjax.process import path_of, system_error

CEILINGS = ("matmul_jax", "matmul_torch")
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line, like all errors of a command."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message}: see --help")


def add_protocol(parser: argparse.ArgumentParser) -> None:
    """The flags of `harness.Protocol`, and those for what comes out."""
    usual = Protocol()
    parser.add_argument("--samples", type=int, default=usual.samples, help="clean samples of each case")
    parser.add_argument("--max_rounds", type=int, default=0, help="rounds of samples at most; 0: four times --samples")
    parser.add_argument("--min_sample_seconds", type=float, default=usual.min_sample_seconds, metavar="SECONDS")
    parser.add_argument("--warm_up_steps", type=int, default=usual.warm_up_steps, metavar="N")
    parser.add_argument(
        "--max_foreign_share",
        type=float,
        default=usual.max_foreign_share,
        metavar="SHARE",
        help="of the cores' time; samples during which others used more are dropped",
    )
    parser.add_argument("--json", type=path_of, metavar="FILE", help="the records")
    parser.add_argument("--csv", type=path_of, metavar="FILE", help="the records, under the command as a comment")
    parser.add_argument("--plot", type=path_of, metavar="FILE.png", help="a chart")


def protocol(flags: argparse.Namespace) -> Protocol:
    """The protocol that the flags describe. Raises UserError for values that no measurement can have."""
    described = Protocol(
        samples=flags.samples,
        max_rounds=flags.max_rounds,
        min_sample_seconds=flags.min_sample_seconds,
        warm_up_steps=flags.warm_up_steps,
        max_foreign_share=flags.max_foreign_share,
    )
    check_protocol(described)
    return described


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def listed(text: str) -> tuple[str, ...]:
    """'a,b' -> ('a', 'b'), for argparse."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(text: str) -> tuple[int, ...]:
    """'8,16' -> (8, 16), for argparse."""
    return tuple(positive(part) for part in listed(text))


def choose_peers(asked: tuple[str, ...] | None, usual: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The peers that can run here, and why others of the usual ones cannot.

    asked: what the flag says, None without it. Raises UserError for an unknown one, and for one that was asked for and
    is not installed.
    """
    allowed = [name for name in IMPLEMENTATIONS if name not in CEILINGS and name != "covidjax"]
    for name in asked or ():
        if name not in allowed:
            raise UserError(f"there is no peer {name!r}: allowed are {', '.join(allowed)}")
        if absent := missing(name):
            raise UserError(absent)
    if asked is not None:
        return asked, {}
    absent_peers = {name: reason for name in usual if (reason := missing(name))}
    return tuple(name for name in usual if name not in absent_peers), absent_peers


def check_writable(*paths: Path | None) -> None:
    """Raises UserError for a file in a folder that is not there: better now than after the measurements."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise UserError(f"there is no folder {path.absolute().parent} for {path.name}: make it, or choose another")


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a command: one line and exit status 2 for a mistake, no traceback."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        fail(str(error))
    except OSError as error:
        fail(system_error(error))
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def fail(message: str) -> NoReturn:
    """Prints one line on standard error and ends with status 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
