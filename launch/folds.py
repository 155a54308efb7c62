"""Cross-validation: every fold of a data set trained and evaluated as a run of its own, and what they say together.

python launch/folds.py --config=configs/cxr3.py:resnet18 --workdir=runs/folds [--config.key=value ...]

Folds are those of folds.csv, or drawn. The same command goes on where it was stopped and repeats nothing finished.
"""

from collections.abc import Sequence

try:
    from covidjax import command
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}: use the environment of `make setup`, with `. .venv/bin/activate`") from None
from covidjax.config.flags import parse_with_config
from covidjax.process import path_of
from covidjax.runs import folds


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, runs what is not finished, says where the page is."""
    parser = command.Parser(prog="launch/folds.py", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=path_of, help="folder of all folds, made if missing")
    flags, config = parse_with_config(parser, arguments)
    print(f"page: {folds.run(config, flags.workdir, command.prepare_process(config.precision))}")


if __name__ == "__main__":
    command.run(main)
