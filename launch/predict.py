"""Predicts new images with a finished run: a table of classes, or of masks with the masks as PNG files.

python launch/predict.py --workdir=runs/quickstart --images=DIR --output=predictions.csv [--overlays=DIR]
    [--checkpoint=best] [--tile=512 [--overlap=128]] [--spacing=5,0.7,0.7] [--inside=DIR [--inside_at_least=0.9]]
    [--explain=DIR [--masks=DIR]] [--calibrated] [--views=8] [--strict]
"""

from collections.abc import Sequence

try:
    from covidjax import command
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}: use the environment of `make setup`, with `. .venv/bin/activate`") from None
from covidjax.process import path_of
from covidjax.runs import predict


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, predicts, says what was written."""
    parser = command.Parser(prog="launch/predict.py", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=path_of, help="folder of a run of launch/train.py")
    parser.add_argument("--images", required=True, type=path_of, help="an image, a folder, or a pattern: 'scans/*.png'")
    parser.add_argument("--output", required=True, type=path_of, help="the table, such as predictions.csv")
    parser.add_argument("--overlays", type=path_of, help="folder for each image beside the image with its mask")
    parser.add_argument("--checkpoint", type=command.which, help=command.WHICH)
    parser.add_argument("--tile", type=int, help="take images at their own size, in tiles of this many pixels")
    parser.add_argument("--overlap", type=int, help="pixels that tiles share (default: a quarter of a tile)")
    parser.add_argument("--spacing", type=command.spacing, help="mm between slices, rows, columns: of volumes")
    parser.add_argument("--inside", type=path_of, help="drop images whose findings lie outside these masks")
    parser.add_argument("--inside_at_least", type=float, help="the part that has to lie inside (default 0.9)")
    parser.add_argument("--explain", type=path_of, help="folder for pictures of where a classifier looks (Grad-CAM)")
    parser.add_argument("--masks", type=path_of, help="masks of lungs of the same images: how much of it lies inside")
    parser.add_argument("--views", type=int, default=1, help="of each image, changed as in training; their mean counts")
    parser.add_argument("--calibrated", action="store_true", help="by validation: the temperature, operating points")
    parser.add_argument(
        "--strict", action="store_true", help="write nothing where an image is bad; else the others, with status 3"
    )
    predict.run(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    command.run(main)
