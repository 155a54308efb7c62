"""Evaluates a run on a split, exactly; every reading of the test split is recorded in the run.

python launch/evaluate.py --workdir=runs/quickstart --split=test [--checkpoint=best]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from covidjax import command, files
from covidjax import config as configs
from covidjax.data import sources
from covidjax.evaluate_run import evaluate_run


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, evaluates, writes the report anew."""
    parser = command.Parser(prog="launch/evaluate.py", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=Path, help="folder of a run of launch/train.py")
    parser.add_argument("--split", required=True, choices=sources.SPLITS)
    parser.add_argument("--checkpoint", default="best", type=_which, help="best (default), latest, or a step")
    flags = parser.parse_args(arguments)
    config = configs.from_json(files.read_json(flags.workdir / "config.json"))
    command.prepare_process(config.precision)
    result = evaluate_run(flags.workdir, flags.split, flags.checkpoint)
    low, high = result["accuracy_ci95"]
    print(f"{flags.split}: {result['num_examples']} examples, checkpoint of step {result['checkpoint']['step']}")
    print(f"accuracy {result['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f})")
    print(f"balanced accuracy {result['balanced_accuracy']:.4f}, macro F1 {result['macro_f1']:.4f}")
    print(f"report: {flags.workdir / 'report.html'}")


def _which(text: str) -> str | int:
    if text in ("best", "latest"):
        return text
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is none of best, latest and the number of a step")


if __name__ == "__main__":
    command.run(main)
