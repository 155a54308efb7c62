"""Prints what every freeze strategy would cost for a config, without training and without reading an image.

python launch/freeze.py --config=configs/cxr3.py:resnet18 [--target=h200|v5e:2x2|...] [--strategies=none,until:layer3]
"""

from collections.abc import Sequence

try:
    from covidjax import command
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}: use the environment of `make setup`, with `. .venv/bin/activate`") from None
from covidjax.config.flags import parse_with_config
from covidjax.process import path_of
from covidjax.runs import freeze
from covidjax.targets import target_of


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, prints the config's own plan, compiles each strategy's step, prints the table."""
    parser = command.Parser(prog="launch/freeze.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    values = "all (default), or values of config.freeze: none,backbone,('layer1','layer2')"
    add("--strategies", type=command.strategies, default=("all",), help=values)
    add("--classes", type=int, help="number of classes; default: counted in the data set's folders")
    add("--images", type=int, help="training images of an epoch; default: counted like the classes")
    add("--target", type=target_of, help="devices that are not here, such as h200, v5e:2x2 or v5p:8x8x8")
    add("--largest_batch", action="store_true", help="with --target: find the most images that fit a device")
    add("--json", type=path_of, metavar="FILE")
    if any(argument.split("=")[0] == "--classes" for argument in arguments):
        arguments = [*arguments, "--config.dataset.root=(not read)"]
    flags, config = parse_with_config(parser, arguments)
    if flags.largest_batch and not flags.target:
        parser.error("--largest_batch needs --target")
    data = freeze.check(config, flags.classes, flags.images, flags.json)
    command.prepare_process(config.precision)
    freeze.run(config, flags.strategies, data, flags.json, flags.target, most=flags.largest_batch)


if __name__ == "__main__":
    command.run(main)
