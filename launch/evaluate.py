"""Evaluates a run on a split, exactly; every reading of the test split is recorded in the run.

python launch/evaluate.py --workdir=runs/quickstart --split=test [--checkpoint=best] [--hausdorff] [--explain]
"""

from collections.abc import Sequence

try:
    from covidjax import command
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}: use the environment of `make setup`, with `. .venv/bin/activate`") from None
from covidjax import config as configs
from covidjax.data import sources
from covidjax.process import path_of
from covidjax.runs import evaluate


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, evaluates, writes the report anew."""
    parser = command.Parser(prog="launch/evaluate.py", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=path_of, help="folder of a run of launch/train.py")
    parser.add_argument("--split", required=True, choices=sources.SPLITS)
    parser.add_argument("--checkpoint", type=command.which, help=command.WHICH)
    parser.add_argument("--hausdorff", action="store_true", help="of masks: distances of borders as well")
    parser.add_argument("--explain", action="store_true", help="of classifiers: where they look, in the report")
    flags = parser.parse_args(arguments)
    command.prepare_process(configs.of_workdir(flags.workdir).precision)
    asked = {"hausdorff": flags.hausdorff, "explain": flags.explain}
    result = evaluate.evaluate_run(flags.workdir, flags.split, flags.checkpoint, **asked)
    print(*evaluate.describe(flags.workdir, flags.split, result), sep="\n")


if __name__ == "__main__":
    command.run(main)
