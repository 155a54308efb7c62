"""Builds the native operations for this processor: `python -m covidjax.ops`.

--optional ends with status 0 where they cannot be built, and says why: everything runs without them.
"""

import sys

from covidjax.command import check_backend
from covidjax.errors import UserError
from covidjax.ops.choose import choose
from covidjax.ops.native import library


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    if unknown := [argument for argument in arguments if argument != "--optional"]:
        print(f"error: unknown argument {unknown[0]!r}: allowed is --optional", file=sys.stderr)
        return 2
    optional = "--optional" in arguments
    try:
        check_backend()
        if not library.path().exists():
            library.build()
        choice = choose("native")
    except UserError as error:
        print(f"{'native operations are not there' if optional else 'error'}: {error}", file=sys.stderr)
        return 0 if optional else 2
    print(choice.note)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
