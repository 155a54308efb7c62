"""Evaluates a run on a split, exactly; every reading of the test split is recorded in the run.

python launch/evaluate.py --workdir=runs/quickstart --split=test [--checkpoint=best] [--hausdorff]
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from covidjax import command, files
from covidjax import config as configs
from covidjax.data import sources
from covidjax.process import prepare_process
from covidjax.runs.evaluate import evaluate_run


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, evaluates, writes the report anew."""
    parser = command.Parser(prog="launch/evaluate.py", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=Path, help="folder of a run of launch/train.py")
    parser.add_argument("--split", required=True, choices=sources.SPLITS)
    parser.add_argument("--checkpoint", default="best", type=command.which, help=command.WHICH)
    parser.add_argument("--hausdorff", action="store_true", help="of masks: distances of borders as well")
    flags = parser.parse_args(arguments)
    config = configs.from_json(files.read_json(flags.workdir / "config.json"))
    prepare_process(config.precision)
    result = evaluate_run(flags.workdir, flags.split, flags.checkpoint, hausdorff=flags.hausdorff)
    origin = f"checkpoint of step {result['checkpoint']['step']}" if "checkpoint" in result else "mixture of networks"
    print(f"{flags.split}: {result['num_examples']} examples, {origin}")
    print(*_figures(result), sep="\n")
    print(f"report: {flags.workdir / 'report.html'}")


def _figures(result: dict[str, Any]) -> Iterator[str]:
    """The lines that tell the figures of labels or of masks, and of a mixture those of its members."""
    if "dice" in result:
        yield f"Dice {_with_interval(result, 'dice')}"
        yield f"IoU {_with_interval(result, 'iou')}"
        if result.get("hausdorff95") is not None:
            yield f"Hausdorff 95: {result['hausdorff95']:.2f} pixels"
        for name, scores in result["per_class"].items():
            yield f"  {name}: Dice {_with_interval(scores, 'dice')}"
    else:
        yield f"accuracy {_with_interval(result, 'accuracy')}"
        yield f"balanced accuracy {result['balanced_accuracy']:.4f}, macro F1 {result['macro_f1']:.4f}"
    for member, paired in zip(result.get("members", ()), result.get("comparison", ()), strict=True):
        yield f"  {member['name']}, weight {member['weight']:.3f}: accuracy {_with_interval(member, 'accuracy')}"
        difference = _with_interval(paired, "difference")
        yield f"    mixture - {member['name']}: {difference}, McNemar's exact p {paired['mcnemar_p']:.2g}"
    for brand in ("leak", "optimistic"):
        if brand in result:
            yield f"{brand}: {result[brand]}"


def _with_interval(scores: dict[str, Any], key: str) -> str:
    bounds = scores[f"{key}_ci95"]
    between = f" (95 % interval {bounds[0]:.4f} to {bounds[1]:.4f})" if bounds else ""
    return f"{scores[key]:.4f}{between}"


if __name__ == "__main__":
    command.run(main)
