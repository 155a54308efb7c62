"""Makes a data set that training can read out of the files that its publishers give away.

python launch/prepare.py --dataset=covid_ct --manual_dir=DIR --data_dir=DIR
python launch/prepare.py --list
"""

from collections.abc import Sequence

try:
    from covidjax import command
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}: use the environment of `make setup`, with `. .venv/bin/activate`") from None
from covidjax.data.datasets import BUILDERS
from covidjax.data.datasets.prepare import describe, prepare
from covidjax.errors import UserError
from covidjax.process import path_of


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, prepares the set, says how a config names it."""
    parser = command.Parser(prog="launch/prepare.py", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", metavar="NAME[/VARIANT]", help="a name of --list")
    parser.add_argument("--manual_dir", type=path_of, help="the folder with the files, as --list says; it is only read")
    parser.add_argument("--data_dir", type=path_of, help="the folder of prepared sets")
    parser.add_argument("--list", action="store_true", help="the data sets, and what to put into --manual_dir for each")
    flags = parser.parse_args(arguments)
    if flags.list:
        print(*map(describe, BUILDERS), sep="\n\n")
        return
    if not (flags.dataset and flags.manual_dir and flags.data_dir):
        raise UserError("give --dataset=NAME --manual_dir=DIR --data_dir=DIR, or --list")
    with command.exit_on_sigterm():
        folder = prepare(flags.dataset, flags.manual_dir, flags.data_dir)
    print(f"train from it with --config.dataset.name=tfds --config.dataset.root={folder}")


if __name__ == "__main__":
    command.run(main)
