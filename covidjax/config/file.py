"""A config file as the Python module that it is: what it makes, and where and why it fails."""

import ast
import contextlib
import functools
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections
from ml_collections import ConfigDict

from covidjax.config.checks import check_phases, check_value, flatten, plain, unknown_key
from covidjax.config.schema import keys
from covidjax.errors import UserError

MODULE = "covidjax_run_config"  # what a config is called among the modules while it is loaded
LIBRARY = Path(ml_collections.__file__).parent
# Code that is not the user's: of this package, of the standard library and of what is installed.
NOT_THEIRS = (Path(__file__).parents[1], *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")))


def evaluate(path: str, file: Path, argument: str | None) -> tuple[ConfigDict, tuple[Path, ...]]:
    """What `get_config` of a file makes, and that file with those of the neighbours that it imports.

    path: the file as the user names it. Raises UserError, naming file and line, the key and what is allowed.
    """
    module_spec = importlib.util.spec_from_file_location(MODULE, file)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"--config: {path!r} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    try:
        with _importable(module, file.absolute().parent) as theirs:
            module_spec.loader.exec_module(module)
            config = _maker(module, path, argument)()
    except UserError as error:
        if str(error).startswith("--config") or _is_theirs(traceback.extract_tb(error.__traceback__)[-1].filename):
            raise  # the file says itself what is wrong
        raise UserError(f"--config: {_place(path, file, error)}: {error}") from error
    except Exception as error:
        raise UserError(f"--config: {_place(path, file, error)}: {meaning(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config: get_config in {path} returns {type(config).__name__}: it has to return the ConfigDict of "
            "covidjax.config.default_config(), changed"
        )
    return config, (file, *theirs)


def _maker(module: ModuleType, path: str, argument: str | None) -> Callable[[], Any]:
    """`get_config` with its argument. Raises UserError where there is none, or none that takes it."""
    if not callable(maker := getattr(module, "get_config", None)):
        raise UserError(
            f"--config: {path} has no function get_config, which makes the config: see configs/quickstart.py"
        )
    arguments = (argument,) if argument else ()
    try:
        inspect.signature(maker).bind(*arguments)
    except TypeError as error:
        given = f"was given {argument!r}" if argument else "was given none"
        raise UserError(
            f"--config: get_config of {path} takes {inspect.signature(maker)} and {given}: {error}"
        ) from error
    return functools.partial(maker, *arguments)


@contextlib.contextmanager
def _importable(module: ModuleType, folder: Path) -> Iterator[list[Path]]:
    """Within it a config is a module like others, beside its neighbours; afterwards no other config sees these.

    Gives the files of the neighbours, once it has ended.
    """
    before = set(sys.modules)
    sys.modules[MODULE] = module  # dataclasses look themselves up there
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    files: list[Path] = []
    try:
        yield files
    finally:
        sys.path.remove(str(folder))
        del sys.modules[MODULE]
        for name in set(sys.modules) - before:
            top = name.partition(".")[0]
            own = getattr(sys.modules[name], "__file__", None)
            places = [own, *getattr(sys.modules[name], "__path__", ())]
            near = (
                Path(place).is_relative_to(folder / top) or Path(place) == folder / f"{top}.py"
                for place in places
                if place
            )
            if top not in before and any(near):
                files += [Path(own)] if own else []
                del sys.modules[name]


def check_values(config: ConfigDict, path: str, files: Sequence[Path]) -> None:
    """Checks each value alone. Raises UserError, with the line where just one line of the files sets the key."""
    for key, value in flatten(config):
        if key not in keys():
            raise UserError(f"--config: {path}: {unknown_key(key, keys())}")
        try:
            check_value(f"config.{key}", key, value)
            if key == "phases":
                check_phases(value)
        except UserError as error:
            lines = [f"{file if file != files[0] else path}:{line}" for file in files for line in _lines(file, key)]
            raise UserError(f"--config: {lines[0] if len(lines) == 1 else path}: {error}") from error


def _lines(file: Path, key: str) -> list[int]:
    """The lines of a file that assign to `<name>.<key>`."""
    tree = ast.parse(file.read_bytes())
    assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign)]
    return [
        node.lineno
        for node in assigned
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute) and ast.unparse(target).partition(".")[2] == key
    ]


def _place(path: str, file: Path, error: Exception) -> str:
    """File and line of the user's code that an error comes from: of the config, or of a module that it imports."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        found = [(error.filename, error.lineno)]
    else:
        frames = traceback.extract_tb(error.__traceback__)
        found = [(frame.filename, frame.lineno or 0) for frame in frames if _is_theirs(frame.filename)]
    if not found:
        return path
    name, line = found[-1]
    return f"{path if Path(name) == file else name}:{line}"


def _is_theirs(filename: str) -> bool:
    return not filename.startswith("<") and not any(map(Path(filename).is_relative_to, NOT_THEIRS))


def meaning(error: Exception) -> str:
    """What was wrong: of a key, as on the command line; else the kind of the error and its message in one line."""
    if found := _refused(error):
        section, leaf, value = found
        key = f"{section}.{leaf}" if section else leaf
        if key not in keys():
            return unknown_key(key, keys())
        if value:
            try:
                check_value(f"config.{key}", key, plain(value[0]))
            except UserError as refused:
                return str(refused)
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}: {(error.text or '').strip()}".removesuffix(": ")
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _refused(error: BaseException) -> tuple[str, str, list[Any]] | None:
    """Section and name of the key that the ConfigDict refused, and the value if one was set; None for another error."""
    if error.__context__ and (inner := _refused(error.__context__)):  # an AttributeError stands for a KeyError
        return inner
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames or not Path(frames[-1].f_code.co_filename).is_relative_to(LIBRARY):
        return None
    for frame in reversed(frames):
        names = frame.f_locals
        owner, leaf = names.get("self"), names.get("key", names.get("attribute"))
        if isinstance(owner, ConfigDict) and isinstance(leaf, str):
            return _section(owner), leaf, [names["value"]] if "value" in names else []
    return None


def _section(owner: ConfigDict) -> str:
    """The name of the section whose keys a ConfigDict has; '' for the whole."""
    members: dict[str, set[str]] = {}
    for key in keys():
        section, _, leaf = key.rpartition(".")
        members.setdefault(section, set()).add(leaf)
        if section:
            members.setdefault("", set()).add(section)
    return max(members, key=lambda section: len(members[section] & set(owner.keys())) / len(members[section]))
