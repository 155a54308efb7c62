"""Trains what a config says; the same command again resumes, or does nothing where the run is finished.

python launch/train.py --config=configs/quickstart.py --workdir=runs/quickstart [--config.key=value ...]
"""

from collections.abc import Sequence

try:
    from covidjax import command
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}: use the environment of `make setup`, with `. .venv/bin/activate`") from None
from covidjax.config.flags import parse_with_config
from covidjax.distributed.start import joined
from covidjax.process import path_of
from covidjax.runs.train import run


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, trains, says where the report is."""
    parser = command.Parser(prog="launch/train.py", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=path_of, help="folder of the run, made if missing")
    flags, config = parse_with_config(parser, arguments, ensembles=True)
    waits = config.processes
    with joined(waits.start_seconds, waits.heartbeat_seconds, config.watchdog_seconds) as processes:
        allocator = command.prepare_process(config.precision)
        print(f"report: {run(config, flags.workdir, allocator, processes)}")


if __name__ == "__main__":
    command.run(main)
