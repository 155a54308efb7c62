"""Runs beside each other on the same images: figures with intervals, paired tests, cost. Reads no image.

python launch/compare.py runs/a runs/b [runs/c ...] [--split=test] [--json=runs/compare.json]

Each run has been evaluated on the split by launch/evaluate.py. --json writes a page beside the file, runs/compare.html.
"""

from collections.abc import Sequence

try:
    from covidjax import command
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}: use the environment of `make setup`, with `. .venv/bin/activate`") from None
from covidjax.process import path_of
from covidjax.runs import compare


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, prints the tables, writes JSON and page."""
    parser = command.Parser(prog="launch/compare.py", description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+", metavar="DIR", type=path_of, help="folders of runs, two or more")
    parser.add_argument("--split", default="test", choices=("test", "val"), help="that all were evaluated on")
    parser.add_argument("--json", type=path_of, help="file of all figures; the page is written beside it")
    flags = parser.parse_args(arguments)
    result = compare.compare(flags.workdirs, flags.split)
    print(*compare.describe(result), sep="\n")
    if flags.json:
        print(f"page: {compare.write(flags.json, result)}")


if __name__ == "__main__":
    command.run(main)
