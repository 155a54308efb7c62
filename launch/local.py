"""Starts several processes of one command on this machine, which train together; output is prefixed by their numbers.

python launch/local.py --processes=2 --devices_per_process=2 -- launch/train.py --config=... --workdir=...
"""

import sys
from collections.abc import Sequence

try:
    from covidjax import command
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}: use the environment of `make setup`, with `. .venv/bin/activate`") from None
from covidjax.distributed import local
from covidjax.errors import UserError


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments before `--`, starts what comes after it."""
    place = [*arguments, "--"].index("--")
    script = arguments[place + 1 :]
    parser = command.Parser(prog="launch/local.py", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2, help="how many (default 2)")
    parser.add_argument("--devices_per_process", type=int, default=1, help="devices of each (default 1)")
    flags = parser.parse_args(arguments[:place])
    if not script:
        raise UserError("there is no command: write `--` and then a script, such as -- launch/train.py --config=...")
    if min(flags.processes, flags.devices_per_process) < 1:
        raise UserError("--processes and --devices_per_process are whole numbers from 1 on")
    sys.exit(local.run_together(script, flags.processes, flags.devices_per_process))


if __name__ == "__main__":
    command.run(main)
