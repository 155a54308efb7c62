"""The files below a folder: one walk for every command that looks for images."""

import collections
import dataclasses
import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from covidjax.data.formats.read import DICOM_START, DICOM_SUFFIXES, SUFFIXES, is_dicom
from covidjax.errors import UserError, some_of
from covidjax.files import printable

SYSTEM = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini")
WORDS = "masks?|segs?|segmentations?|labels?|gt|ground_?truths?|annotations?"
OF_MASK = re.compile(rf"(.+?)[-_. ]+(?:{WORDS})(?:[-_. ]*\(?\d+\)?)?|(?:{WORDS})[-_. ]+(.+)", re.IGNORECASE)
IMAGE_FOLDER = re.compile("images?|imgs?|scans?|pictures?", re.IGNORECASE)
SPELLINGS = {
    split: re.compile(rf"(?:{own})(?:[-_ ]?(?:set|data|images|split))?", re.IGNORECASE)
    for split, own in (("train", "train(ing)?"), ("val", "val(id(ation)?)?|dev(elopment)?"), ("test", "test(ing)?"))
}
MASK_FOLDER = re.compile(WORDS, re.IGNORECASE)
PATTERN = "*?["  # the letters that make a path a pattern


ENTERED = "links to folders that are read already were not entered"
PASSED_OVER = {
    "system": "hidden entries and those of operating systems were passed over",
    "special": "pipes, sockets and devices were passed over",
    "broken": "links that lead nowhere were passed over",
}


@dataclasses.dataclass(frozen=True)
class Walk:
    """What lies below a folder, by names below it with '/' between, sorted folder by folder, the upper ones first.

    images: files whose ending is one of images, and DICOM files without one; others: all other files
    folders: all that were read, '' is the root
    paths: the names on disk of those images that are written otherwise, see `covidjax.files.printable`
    passed_over: entries, by the reason why they are neither files nor folders of the set
    """

    root: Path
    images: tuple[str, ...]
    others: tuple[str, ...]
    folders: tuple[str, ...]
    paths: Mapping[str, str]
    passed_over: Mapping[str, tuple[str, ...]]

    @property
    def not_entered(self) -> tuple[str, ...]:
        """Links to folders that are read elsewhere."""
        return self.passed_over.get(ENTERED, ())

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not read: a sentence for each reason."""
        return tuple(f"{why}: {len(names)}, {some_of(names)}" for why, names in self.passed_over.items())


def is_image(name: str) -> bool:
    """Whether the ending is one of images."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def may_be_dicom(name: str) -> bool:
    """Whether an image of this name may be a DICOM file: by its ending, or because it has none of images."""
    return not is_image(name) or name.lower().endswith(DICOM_SUFFIXES)


def without_ending(name: str) -> str:
    """A name without the ending, if that is one of images."""
    return os.path.splitext(name)[0] if is_image(name) else name


def _is_bare_dicom(path: Path) -> bool:
    """Whether a file without an ending, or with a number in its place as in 1.2.840.7, begins as DICOM does."""
    ending = path.suffix[1:]
    if (ending and not ending.isdecimal()) or path.name.upper() == "DICOMDIR":  # an index of others
        return False
    try:
        with path.open("rb") as file:
            return is_dicom(file.read(DICOM_START))
    except OSError:
        return False


def is_system(name: str) -> bool:
    """Whether a file or folder is hidden, or one that operating systems leave behind."""
    return name.startswith(".") or name.lower() in SYSTEM


def walk(root: Path, layout: str = "") -> Walk:
    """Reads a folder and all below it. Of files without an ending the first 132 bytes are read, no other is opened.

    Linked folders are entered after all others, and each folder once, whatever leads to it: links may form a loop.
    Pipes, sockets and devices are passed over. layout: ends the message of errors.
    Raises UserError where a folder cannot be listed, and for images whose names differ in bytes only.
    """
    found: dict[str, list[str]] = collections.defaultdict(list)
    seen, todo, links, folders = set[tuple[int, int]](), collections.deque([""]), collections.deque[str](), []
    while todo or links:
        folder = todo.popleft() if todo else links.popleft()
        place = root / folder
        try:
            status = place.stat()
            if (status.st_dev, status.st_ino) in seen:
                found[ENTERED].append(folder)
                continue
            seen.add((status.st_dev, status.st_ino))
            folders.append(folder)
            with os.scandir(place) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{place} cannot be listed ({error.strerror}){'; ' * bool(layout)}{layout}") from error
        for entry in inside:
            name = f"{folder}/{entry.name}" if folder else entry.name
            kind = "system" if is_system(entry.name) else _kind(entry)
            if kind == "folder":
                (links if entry.is_symlink() else todo).append(name)
            else:
                found[PASSED_OVER.get(kind, kind)].append(name)
    names = {kind: sorted(members, key=_place) for kind, members in found.items()}
    files = names.pop("file", [])
    return _walk_of(root, files, tuple(printable(name) for name in sorted(folders, key=_place)), names)


def _walk_of(root: Path, files: Sequence[str], folders: tuple[str, ...], passed_over: Mapping[str, list[str]]) -> Walk:
    images = [name for name in files if is_image(name) or _is_bare_dicom(root / name)]
    chosen = frozenset(images)
    paths = _by_name(root, images)
    return Walk(
        root,
        tuple(map(printable, images)),
        tuple(printable(name) for name in files if name not in chosen),
        folders,
        {name: path for name, path in paths.items() if name != path},
        {why: tuple(map(printable, members)) for why, members in sorted(passed_over.items())},
    )


def is_pattern(path: Path) -> bool:
    """Whether a path is a pattern of names rather than one: *, ? or [ occurs in it."""
    return any(letter in str(path) for letter in PATTERN)


def matching(pattern: Path) -> Walk:
    """The files that a pattern of names matches, as `walk` has those of a folder; hidden ones are not looked at.

    Raises UserError for images whose names differ in bytes only.
    """
    depth = next(number for number, part in enumerate(pattern.parts) if is_pattern(Path(part)))
    root, below = Path(*pattern.parts[:depth]), str(Path(*pattern.parts[depth:]))
    matched = sorted(glob.glob(below, root_dir=root, recursive=True), key=_place)
    files = [name for name in matched if (root / name).is_file() or is_image(name)]  # a broken link is a bad image
    return _walk_of(root, [name for name in files if not (root / name).is_dir()], ("",), {})


def _kind(entry: os.DirEntry[str]) -> str:
    """'folder', 'file', 'special' or 'broken'; a broken link with the name of an image is a file: a bad one."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        broken = entry.is_symlink() and not os.path.exists(entry.path)
    except OSError:  # such as a link to itself
        broken = True
    if broken:
        return "file" if is_image(entry.name) else "broken"
    return "special"


def _place(name: str) -> tuple[list[str], str]:
    *folders, last = name.split("/")
    return folders, last


def _by_name(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """Names on disk by the names that are written. Raises UserError where two are the same."""
    found: dict[str, str] = {}
    for path in paths:
        name = printable(path)
        if name in found:
            pair = " and ".join(ascii(each) for each in (found[name], path))
            raise UserError(f"{root} has {pair}, which are the same but for code points: rename one")
        found[name] = path
    return found


def split_folders(found: Walk) -> tuple[dict[str, str], list[str]]:
    """The folder of each split that has one, in their order, and notes on other spellings, such as valid or Testing.

    Raises UserError where two folders are the same split, and for a link to a folder that is read elsewhere.
    """
    spelled = {
        split: [name for name in (*found.folders, *found.not_entered) if spelling.fullmatch(name)]
        for split, spelling in SPELLINGS.items()
    }
    for split, names in spelled.items():
        if len(names) > 1:
            raise UserError(f"{found.root} has {' and '.join(names)}, which all are {split}: keep one")
        if linked := [name for name in names if name in found.not_entered]:
            raise UserError(
                f"{found.root / linked[0]} is a link to a folder that is read already: a split needs its own"
            )
    chosen = {split: names[0] for split, names in spelled.items() if names}
    return chosen, [f"{name}/ is taken as the {split} split" for split, name in chosen.items() if name != split]


def by_folder(names: Iterable[str]) -> str:
    """How many files there are in each folder, for a note."""
    counts = collections.Counter(name.rpartition("/")[0] or "the folder itself" for name in names)
    return some_of(f"{count} in {folder}" for folder, count in counts.items())


def masks_among(names: Sequence[str]) -> frozenset[str]:
    """The files that are masks of others: `x_mask_1.png` beside `x.png`, or `masks/x.png` of `images/x.png`.

    Where there is one in a folder, so are all others there that are called masks, though their images are missing.
    """
    stems, marked = set[tuple[str, str]](), list[tuple[str, str, str]]()
    for name in names:
        folder, _, file = name.rpartition("/")
        stem = without_ending(file)
        match = OF_MASK.fullmatch(stem)
        of = match[1] or match[2] if match else stem
        outside = "/".join(part for part in folder.split("/") if not MASK_FOLDER.fullmatch(part))
        if outside != folder:
            marked += [(name, outside, stem), (name, outside, of)]
            continue
        stems.add((folder, stem))
        above, _, last = folder.rpartition("/")
        if IMAGE_FOLDER.fullmatch(last):
            stems.add((above, stem))
        if match:
            marked.append((name, folder, of))
    found = {name for name, *wanted in marked if tuple(wanted) in stems}
    places = {name.rpartition("/")[0] for name in found}
    alone = (name for name, *_ in marked if name.rpartition("/")[0] in places and "mask" in name.lower())
    return frozenset(found.union(alone))
