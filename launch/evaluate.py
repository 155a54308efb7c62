"""Evaluates a run on a split, exactly, or on a labelled set of other images; every reading is recorded in the run.

python launch/evaluate.py --workdir=runs/quickstart --split=test [--checkpoint=best] [--hausdorff] [--explain]
    [--calibrated] [--by=view,source] [--views=8] [--root=MOVED]
python launch/evaluate.py --workdir=runs/quickstart --root=OTHER [--name=other] [--classes=theirs=ours,unused=]
"""

from collections.abc import Sequence

try:
    from covidjax import command
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}: use the environment of `make setup`, with `. .venv/bin/activate`") from None
from covidjax.data import sources
from covidjax.process import path_of
from covidjax.runs import evaluate


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, evaluates, writes the report anew."""
    parser = command.Parser(prog="launch/evaluate.py", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=path_of, help="folder of a run of launch/train.py")
    parser.add_argument("--split", choices=sources.SPLITS, help="of the run's own data")
    parser.add_argument("--root", type=path_of, help="another set: a folder or table; with --split: of moved data")
    parser.add_argument("--name", help="of the other set, in files and report (default: that of the folder)")
    parser.add_argument("--classes", type=command.renamings, default={}, help="of the other set: theirs=ours,unused=")
    parser.add_argument("--views", type=int, default=1, help="of each image, changed as in training; their mean counts")
    parser.add_argument("--by", type=command.names, default=(), help="columns whose values have figures of their own")
    parser.add_argument("--checkpoint", type=command.which, help=command.WHICH)
    parser.add_argument("--hausdorff", action="store_true", help="of masks: distances of borders as well")
    parser.add_argument("--explain", action="store_true", help="of classifiers: where they look, in the report")
    parser.add_argument("--calibrated", action="store_true", help="a table with validation's temperature too")
    flags = parser.parse_args(arguments)
    evaluate.run(**vars(flags))


if __name__ == "__main__":
    command.run(main)
