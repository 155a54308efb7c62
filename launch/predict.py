"""Predicts new images with a finished run: a table of classes, or of masks with the masks as PNG files.

python launch/predict.py --workdir=runs/quickstart --images=DIR --output=predictions.csv [--overlays=DIR]
    [--checkpoint=best] [--tile=512 [--overlap=128]] [--spacing=5,0.7,0.7] [--inside=DIR [--inside_at_least=0.9]]

--images is a folder or one file. Masks go to the folder <name of the table>_masks beside the table.
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
    parser.add_argument("--images", required=True, type=path_of, help="an image, or a folder of images")
    parser.add_argument("--output", required=True, type=path_of, help="the table, such as predictions.csv")
    parser.add_argument("--overlays", type=path_of, help="folder for each image beside the image with its mask")
    parser.add_argument("--checkpoint", type=command.which, help=command.WHICH)
    parser.add_argument("--tile", type=int, help="take images at their own size, in tiles of this many pixels")
    parser.add_argument("--overlap", type=int, help="pixels that tiles share (default: a quarter of a tile)")
    parser.add_argument(
        "--spacing", type=command.spacing, help="mm between slices, rows, columns: volumes of each folder"
    )
    parser.add_argument("--inside", type=path_of, help="drop images whose findings lie outside these masks")
    parser.add_argument("--inside_at_least", type=float, help="the part that has to lie inside (default 0.9)")
    predict.run(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    command.run(main)
