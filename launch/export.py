"""Exports a trained network: one file that jax runs without covidjax (.zip), or PyTorch's tensors (.safetensors).

python launch/export.py --workdir=runs/quickstart --output=model.zip [--checkpoint=best]
"""

from collections.abc import Sequence

try:
    from covidjax import command
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}: use the environment of `make setup`, with `. .venv/bin/activate`") from None
from covidjax.process import path_of
from covidjax.runs import export


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, exports, says what was written."""
    parser = command.Parser(prog="launch/export.py", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=path_of, help="folder of a run of launch/train.py")
    parser.add_argument("--output", required=True, type=path_of, help="model.zip, or model.safetensors for PyTorch")
    parser.add_argument("--checkpoint", type=command.which, help=command.WHICH)
    export.run(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    command.run(main)
