"""Writes weights of any source as one safetensors file in our own names, or lists the sources that are known by name.

python launch/convert.py --pretrained=keras/resnet50 --output=resnet50.safetensors
python launch/convert.py --list
"""

from collections.abc import Sequence

try:
    from covidjax import command
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}: use the environment of `make setup`, with `. .venv/bin/activate`") from None
from covidjax.errors import UserError
from covidjax.process import path_of
from covidjax.weights import catalog
from covidjax.weights.convert import convert


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, converts, says what went into the file."""
    parser = command.Parser(prog="launch/convert.py", description=__doc__.splitlines()[0])
    parser.add_argument("--pretrained", help="an id of --list, a file or folder of weights, or a workdir")
    parser.add_argument("--output", type=path_of, metavar="FILE.safetensors")
    parser.add_argument("--list", action="store_true", help="the known ids, with licence, preprocessing and checksum")
    flags = parser.parse_args(arguments)
    if flags.list:
        print(catalog.table())
        return
    if not flags.pretrained or not flags.output:
        raise UserError("give --pretrained=... and --output=FILE.safetensors, or --list")
    header, account = convert(flags.pretrained, flags.output)
    print(*(f"{key}: {value}" for key, value in header.items()), str(account), f"written: {flags.output}", sep="\n")


if __name__ == "__main__":
    command.run(main)
