"""Predicts new images with a finished run: a table of classes, or of masks with the masks as PNG files.

python launch/predict.py --workdir=runs/quickstart --images=DIR --output=predictions.csv [--overlays=DIR]
    [--checkpoint=best] [--tile=512 [--overlap=128]] [--spacing=5,0.7,0.7]

--images is a folder or one file. Masks go to the folder <name of the table>_masks beside the table.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from covidjax import command, files
from covidjax import config as configs
from covidjax.errors import UserError
from covidjax.evaluate.tiles import Tiling
from covidjax.process import prepare_process
from covidjax.runs import predict
from covidjax.runs.ensemble import load_network


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, predicts, says what was written."""
    parser = command.Parser(prog="launch/predict.py", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=Path, help="folder of a run of launch/train.py")
    parser.add_argument("--images", required=True, type=Path, help="an image, or a folder of images")
    parser.add_argument("--output", required=True, type=Path, help="the table, such as predictions.csv")
    parser.add_argument("--overlays", type=Path, help="folder for each image beside the image with its mask")
    parser.add_argument("--checkpoint", default="best", type=command.which, help=command.WHICH)
    parser.add_argument("--tile", type=int, help="take images at their own size, in tiles of this many pixels")
    parser.add_argument("--overlap", type=int, help="pixels that tiles share (default: a quarter of a tile)")
    parser.add_argument("--spacing", type=_spacing, help="mm between slices, rows, columns: volumes of each folder")
    flags = parser.parse_args(arguments)
    tiling = _tiling(flags)
    config = configs.from_json(files.read_json(flags.workdir / "config.json"))
    prepare_process(config.precision)
    sources = predict.list_images(flags.images)
    trained = load_network(flags.workdir, flags.checkpoint)
    found = predict.predict(trained, sources, flags.output, flags.overlays, tiling, flags.spacing)
    ignored = f", {sources.ignored} files that are no images passed over" if sources.ignored else ""
    print(f"{found.num_images} images{ignored}; {trained.origin}")
    if tiling is not None:
        trained_at = f"the network learnt from images brought to {config.dataset.image_size} pixels"
        print(f"taken at their own size: {trained_at}, and is at a loss where things are of another size in pixels")
    print(*found.notes, sep="\n", end="\n" if found.notes else "")
    print(f"{found.counted}: {', '.join(f'{name} {count}' for name, count in found.counts.items())}")
    for title, path in found.files.items():
        print(f"{title}: {path}")
    print("Research use only - not for clinical decisions.")


def _tiling(flags: argparse.Namespace) -> Tiling | None:
    if flags.tile is None:
        if flags.overlap is not None:
            raise UserError("--overlap is that of tiles: give --tile as well")
        return None
    return Tiling(flags.tile, flags.tile // 4 if flags.overlap is None else flags.overlap)


def _spacing(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 5,0.7,0.7") from error


if __name__ == "__main__":
    command.run(main)
