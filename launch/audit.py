"""Looks for leaks, copies and shortcuts in a data set and its split before anything is trained.

python launch/audit.py --config=configs/cxr3.py --output=audit.json
"""

import sys
from collections.abc import Sequence

try:
    from covidjax import command
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}: use the environment of `make setup`, with `. .venv/bin/activate`") from None
from covidjax.config.flags import parse_with_config
from covidjax.data.extra import import_with_extra
from covidjax.process import path_of


def main(arguments: Sequence[str]) -> None:
    """Parses the arguments, looks, writes audit.json and its page; status 3 for a serious finding."""
    parser = command.Parser(prog="launch/audit.py", description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, type=path_of, metavar="FILE.json", help="a page lies beside it")
    flags, config = parse_with_config(parser, arguments)
    command.prepare_process("float32")
    audit = import_with_extra("covidjax.runs.audit", "audits")
    result = audit.audit(config, flags.output)
    print(*audit.describe(result, flags.output), sep="\n")
    if result["verdict"]["gravest"] == "serious":
        sys.exit(command.SERIOUS)


if __name__ == "__main__":
    command.run(main)
