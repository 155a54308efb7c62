"""Finds a learning rate: the loss of each mini-batch while the rate rises from step to step, and what it suggests.

python launch/find_lr.py --config=configs/X.py[:arg] --workdir=DIR [--low=1e-7] [--high=10] [--steps=100]
    [--phase=0] [--config.key=value ...]

A later phase is looked at from --config.pretrained: the workdir of a run of the phases before it.
Writes lr_finder.png and lr_finder.json. What is trained meanwhile is thrown away: a run in the workdir is left alone.
"""

from collections.abc import Sequence

try:
    from covidjax import command
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}: use the environment of `make setup`, with `. .venv/bin/activate`") from None
from covidjax.config.flags import parse_with_config
from covidjax.process import path_of
from covidjax.runs import find_lr


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, sweeps, writes the curve, prints the suggestion and how to use it."""
    parser = command.Parser(prog="launch/find_lr.py", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=path_of, help="folder of the results, made if missing")
    parser.add_argument("--low", type=float, default=1e-7, help="the lowest rate (default 1e-7)")
    parser.add_argument("--high", type=float, default=10.0, help="the highest rate (default 10)")
    parser.add_argument("--steps", type=int, default=100, help="mini-batches from the one to the other (default 100)")
    parser.add_argument("--phase", type=int, default=0, help="of config.phases, from 0 (default 0)")
    flags, config = parse_with_config(parser, arguments)
    rates = find_lr.rates(flags.low, flags.high, flags.steps)
    command.prepare_process(config.precision)
    find_lr.run(config, flags.config, rates, flags.workdir, flags.phase)


if __name__ == "__main__":
    command.run(main)
