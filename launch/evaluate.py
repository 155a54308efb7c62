"""Evaluates a run on a split, exactly; the only command that reads the test split, and it records that it did.

python launch/evaluate.py --workdir=runs/quickstart --split=test [--checkpoint=best]
"""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from covidjax import command, evaluate, files, report
from covidjax import config as configs
from covidjax.data import sources
from covidjax.errors import UserError
from covidjax.train import record
from covidjax.trained import load_trained


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, evaluates, writes the report anew."""
    parser = command.Parser(prog="launch/evaluate.py", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=Path, help="folder of a run of launch/train.py")
    parser.add_argument("--split", required=True, choices=sources.SPLITS)
    parser.add_argument("--checkpoint", default="best", type=_which, help="best (default), latest, or a step")
    flags = parser.parse_args(arguments)
    config = configs.from_json(files.read_json(flags.workdir / "config.json"))
    command.prepare_process(config.precision)
    trained = load_trained(flags.workdir, flags.checkpoint)  # where this fails the test split is not touched
    run = files.read_json(flags.workdir / "run.json")
    if flags.split == "test":
        run["test_reads"].append(datetime.now(UTC).isoformat(timespec="seconds"))
        files.write_json(flags.workdir / "run.json", run)
    examples = sources.load(config.dataset, flags.split)
    known = run["data"].setdefault(flags.split, record.describe(examples))
    if known["fingerprint"] != examples.fingerprint:
        raise UserError(
            f"the {flags.split} images are not those recorded in {flags.workdir / 'run.json'}: put the former ones back"
        )
    files.write_json(flags.workdir / "run.json", run)
    result = evaluate.evaluate_workdir(flags.workdir, trained, examples)
    shown = {flags.split: examples}
    if flags.split != "val" and (flags.workdir / "predictions_val.csv").exists():
        shown["val"] = sources.load(config.dataset, "val")
    low, high = result["accuracy_ci95"]
    print(f"{flags.split}: {result['num_examples']} examples, checkpoint of step {result['checkpoint']['step']}")
    print(f"accuracy {result['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f})")
    print(f"balanced accuracy {result['balanced_accuracy']:.4f}, macro F1 {result['macro_f1']:.4f}")
    print(f"report: {report.write(flags.workdir, shown)}")


def _which(text: str) -> str | int:
    if text in ("best", "latest"):
        return text
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is none of best, latest and the number of a step")


if __name__ == "__main__":
    command.run(main)
