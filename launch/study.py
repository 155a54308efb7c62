"""Which freeze strategy works, and what does each cost: strategies x seeds as runs of their own, compared on one page.

python launch/study.py --config=configs/quickstart.py --workdir=runs/study --strategies=none,until:block3,backbone
    --seeds=0,1,2 [--learning_rates=1e-3,1e-4] [--test] [--config.key=value ...]

The same command goes on where it was stopped and repeats no finished run; more strategies, seeds and learning rates may
be added to it. --test reads the test split for the chosen strategy alone.
"""

from collections.abc import Sequence

try:
    from covidjax import command
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}: use the environment of `make setup`, with `. .venv/bin/activate`") from None
from covidjax.config.flags import parse_with_config
from covidjax.process import path_of
from covidjax.study import run as study
from covidjax.study.plan import Study


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, runs what is not finished, writes study.csv and study.html."""
    parser = command.Parser(prog="launch/study.py", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=path_of, help="folder of the study, made if missing")
    parser.add_argument(
        "--strategies", required=True, type=command.strategies, help="values of config.freeze: none,backbone,..."
    )
    parser.add_argument("--seeds", required=True, type=command.seeds, help="values of config.seed: 0,1,2")
    parser.add_argument("--learning_rates", type=command.rates, help="of config.optimizer.learning_rate; default: one")
    parser.add_argument("--test", action="store_true", help="evaluate the chosen strategy on the test split")
    flags, config = parse_with_config(parser, arguments)
    study.check_overrides(arguments, rates=bool(flags.learning_rates))
    rates = flags.learning_rates or (config.optimizer.learning_rate,)
    plan = Study(flags.workdir, config, flags.strategies, rates, flags.seeds)
    study.run(plan, command.prepare_process(config.precision), test=flags.test)


if __name__ == "__main__":
    command.run(main)
