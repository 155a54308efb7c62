"""Prints what every freeze strategy would cost for a config, without training and without reading an image.

python launch/freeze.py --config=configs/cxr3.py:resnet18 [--strategies=none,until:layer3] [--json=costs.json]
"""

from collections.abc import Sequence

try:
    from covidjax import command
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}: use the environment of `make setup`, with `. .venv/bin/activate`") from None
from covidjax.config.flags import parse_with_config
from covidjax.process import path_of
from covidjax.runs import freeze


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, prints the config's own plan, compiles each strategy's step, prints the table."""
    parser = command.Parser(prog="launch/freeze.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--strategies",
        type=command.strategies,
        default=("all",),
        help="all (default), or values of config.freeze: none,backbone,('layer1','layer2')",
    )
    parser.add_argument("--classes", type=int, help="number of classes; default: counted in the data set's folders")
    parser.add_argument("--images", type=int, help="training images of an epoch; default: counted like the classes")
    parser.add_argument("--json", type=path_of, metavar="FILE")
    if any(argument.split("=")[0] == "--classes" for argument in arguments):
        arguments = [*arguments, "--config.dataset.root=(not read)"]
    flags, config = parse_with_config(parser, arguments)
    data = freeze.check(config, flags.classes, flags.images, flags.json)
    command.prepare_process(config.precision)
    freeze.run(config, flags.strategies, data, flags.json)


if __name__ == "__main__":
    command.run(main)
