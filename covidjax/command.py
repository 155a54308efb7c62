"""What every command in `launch/` shares: its arguments, and errors for the person at the keyboard."""

import argparse
import contextlib
import io
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import jax

from covidjax.console import say
from covidjax.errors import Interrupted, UserError
from covidjax.process import cache_dir, is_writable, keep_memory, processor_name, system_error
from covidjax.registry import fault

PARTIAL = 3  # the status of a command that did what it could and left some of its inputs out
STOPPED_BY_SIGTERM = 143
STOPPED_BY_SIGPIPE = 141
SERIOUS = 3  # exit status of an audit that found something serious
WHICH = "best, latest, or a step; by default what config.checkpoint.evaluate of the run says"


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line, like all errors of a command."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message}: see --help")


def which(text: str) -> str | int:
    """The value of --checkpoint: 'best', 'latest' or a step."""
    if text in ("best", "latest"):
        return text
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is none of best, latest and the number of a step")


def names(text: str) -> tuple[str, ...]:
    """The value of a flag that takes several names: the parts between commas."""
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty part: write names with a comma between them")
    return parts


def renamings(text: str) -> dict[str, str]:
    """The value of --classes, such as COVID=covid19,other=: the new name by the old one, '' for none."""
    pairs = [part.partition("=") for part in names(text)]
    if not all(old.strip() and sign for old, sign, _ in pairs) or len({old for old, *_ in pairs}) < len(pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form theirs=ours,unused=, each of theirs once")
    return {old.strip(): new.strip() for old, _, new in pairs}


def strategies(text: str) -> tuple[str, ...]:
    """The value of --strategies: the parts between semicolons or commas that stand in no bracket and no quotation."""
    parts, quote, escaped, depth = [""], "", False, 0
    for letter in text:
        if escaped or letter == "\\":
            escaped = not escaped
        elif letter in "'\"" and quote in ("", letter):
            quote = "" if quote else letter
        elif not quote and letter in "([{":
            depth += 1
        elif not quote and letter in ")]}":
            depth -= 1
            if depth < 0:
                break
        elif not quote and depth == 0 and letter in ",;":
            parts.append("")
            continue
        parts[-1] += letter
    if quote or depth:
        raise argparse.ArgumentTypeError(f"{text!r} has a bracket or a quotation mark without its other half")
    parts = [part.strip() for part in parts]
    if not all(parts):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty part: write names with a comma between them")
    return tuple(parts)


def seeds(text: str) -> tuple[int, ...]:
    """The value of --seeds, such as 0,1,2."""
    parts = names(text)
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers, such as 0,1,2")
    return tuple(map(int, parts))


def rates(text: str) -> tuple[float, ...]:
    """The value of a flag that takes several numbers above 0, such as 1e-3,1e-4."""
    try:
        found = tuple(float(part) for part in names(text))
    except ValueError:
        found = (math.nan,)
    if not all(rate > 0 and math.isfinite(rate) for rate in found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers above 0, such as 1e-3,1e-4")
    return found


def spacing(text: str) -> tuple[float, ...]:
    """The value of --spacing, such as 5,0.7,0.7."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 5,0.7,0.7") from error


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a command: one line and exit status 2 for a mistake, also one in a plugin, no traceback.

    What the encoding of the terminal cannot show, such as a name in another script, is escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            main(sys.argv[1:])
        except (RuntimeError, AssertionError):
            check_backend()
            raise
    except UserError as error:
        fail(str(error))
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.number)
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(STOPPED_BY_SIGPIPE)
    except Exception as error:
        whole = getattr(jax.config, "jax_traceback_filtering") == "off"  # noqa: B009 (as below)
        if (told := fault(error)) and not whole:
            fail(f"{told} (with JAX_TRACEBACK_FILTERING=off comes the traceback)")
        if not isinstance(error, OSError):
            raise
        fail(system_error(error))
    except KeyboardInterrupt:
        print("\ninterrupted: a training run goes on from its last checkpoint with the same command", file=sys.stderr)
        sys.exit(130)


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Within it SIGTERM unwinds the command, so that what is half written is cleared."""
    former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED_BY_SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def check_backend() -> None:
    """Raises UserError where the devices that JAX_PLATFORMS asks for are not there."""
    asked = getattr(jax.config, "jax_platforms") or ""  # noqa: B009 (as below)
    try:
        found, reason = jax.default_backend(), ""
    except (RuntimeError, AssertionError) as error:
        found, reason = "", " ".join(str(error).split()).partition(" (set JAX_PLATFORMS")[0]
    if not found or (found == "cpu" and asked.split(",")[0] not in ("", "cpu")):
        there = f"JAX found {found}" if found else reason or "JAX has no such device here"
        raise UserError(f"JAX_PLATFORMS is {asked!r}: {there}: unset it to take what there is, or set it to cpu")


def fail(message: str) -> None:
    """Prints one line on standard error and ends with status 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def prepare_process(precision: str) -> str:
    """Settings of the whole process, before the first array is made; returns what became of the allocator.

    Compiled programs are kept in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names another.
    """
    if precision == "float64":
        jax.config.update("jax_enable_x64", True)
    if getattr(jax.config, "jax_compilation_cache_dir") is None:  # noqa: B009 (the type checker does not know it)
        folder = cache_dir("") / "programs" / processor_name()
        if is_writable(folder):
            jax.config.update("jax_compilation_cache_dir", str(folder))
        else:
            say(f"{folder} cannot be written: compiled programs are not kept for later commands")
    allocator = keep_memory()
    check_backend()
    return allocator
