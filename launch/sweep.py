"""Trains many heads on the cached features of one frozen prefix in one program, and reports a table.

python launch/sweep.py --config=configs/X.py --workdir=DIR --learning_rates=1e-4,1e-3 [--weight_decays=0,0.05]
    [--class_weights=none,balanced] [--seeds=0,1,2] [--config.key=value ...]
"""

from collections.abc import Sequence

try:
    from covidjax import command
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}: use the environment of `make setup`, with `. .venv/bin/activate`") from None
from covidjax.config.flags import parse_with_config
from covidjax.process import path_of
from covidjax.runs import sweep


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, trains the heads, writes sweep.csv and sweep.json, prints the best."""
    parser = command.Parser(prog="launch/sweep.py", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=path_of, help="folder of the results, made if missing")
    parser.add_argument("--learning_rates", default="", help="such as 1e-4,1e-3; default: that of the config")
    parser.add_argument("--weight_decays", default="", help="such as 0,0.05; default: that of the config")
    parser.add_argument("--class_weights", default="", help="none, balanced or both; default: that of the config")
    parser.add_argument("--seeds", default="", help="such as 0,1,2; default: that of the config")
    flags, config = parse_with_config(parser, arguments)
    command.prepare_process(config.precision)
    sweep.run(config, vars(flags), flags.workdir)


if __name__ == "__main__":
    command.run(main)
