"""Images with masks in a folder: side by side in images/ and masks/, or each beside its own."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping

from covidjax.data.listing import Row, Scan
from covidjax.data.walk import Walk, by_folder, without_ending
from covidjax.errors import UserError, some_of

NUMBERED = re.compile(r"(.+)_mask(?:_?\d+)?", re.IGNORECASE)  # of several masks of an image: x_mask, x_mask_1
PAIR_LAYOUT = (
    "expected layout: root/images/<name>.jpg and root/masks/<name>.png, or both below root/train|val|test, or "
    "<name>.tif beside <name>_mask.tif in one folder for each patient"
)


def scan(found: Walk, splits: Mapping[str, str], joined: bool) -> Scan:
    """All images with their masks. splits: the folder of each; joined: whether an image may have several masks.

    Raises UserError where no image has one.
    """
    spelled = {folder.lower(): folder for folder in found.folders}
    images = {split: spelled.get(f"{above}images".lower()) for split, above in _above(splits).items()}
    folders = {split: folder for split, folder in images.items() if folder is not None}
    if folders:
        rows, ignored, outside = _side_by_side(found, folders, spelled, joined)
    else:
        rows, ignored = _beside(found, splits, joined)
        outside = []
    if not any(row.masks for row in rows):
        raise UserError(f"{found.root} has no image with a mask; {PAIR_LAYOUT}")
    notes = []
    if ignored:
        kind = "images, or masks without one,"
        notes.append(f"{len(ignored)} entries are no {kind} and were ignored: {some_of(ignored)}")
    if outside:
        notes.append(f"{len(outside)} images outside images/ and masks/ are not read: {by_folder(outside)}")
    if several := [row.name for row in rows if len(row.masks or ()) > 1]:
        notes.append(f"{len(several)} images have several masks, which were joined: {some_of(several)}")

    def places(record: Mapping[str, str]) -> list[str]:
        file, split = record["file"], record["split"]
        return [f"{folders[each]}/{file}" for each in (split, "") if each in folders] or [file]

    return Scan(rows, places, notes)


def _above(splits: Mapping[str, str]) -> dict[str, str]:
    """What stands before images/ and masks/, by split."""
    return {"": "", **{split: f"{folder}/" for split, folder in splits.items()}}


def _side_by_side(
    found: Walk, of_images: Mapping[str, str], spelled: Mapping[str, str], joined: bool
) -> tuple[list[Row], list[str], list[str]]:
    """Rows, what was ignored, and the images of other folders. of_images: by split; spelled: folders by small letters.

    Raises UserError where there are no masks.
    """
    rows: list[Row] = []
    ignored: list[str] = []
    used: set[str] = set()
    for split, folder in of_images.items():
        of_masks = f"{folder[: -len('images')]}masks"
        if of_masks.lower() not in spelled:
            raise UserError(f"{found.root / of_masks} does not exist; {PAIR_LAYOUT}")
        folders = f"{folder}/", f"{spelled[of_masks.lower()]}/"
        images, masks = ([name for name in found.images if name.startswith(folder)] for folder in folders)
        own, taken = _match(images, masks, *folders, joined)
        rows += [dataclasses.replace(row, split=split) for row in own]
        used.update(images, masks)
        ignored += [name for name in found.others if name.startswith(folders) and not name.endswith(".csv")]
        ignored += [name for name in masks if name not in taken]
    return rows, ignored, [name for name in found.images if name not in used]


def _beside(found: Walk, splits: Mapping[str, str], joined: bool) -> tuple[list[Row], list[str]]:
    """Rows with the folder's split and patient: the first folder that differs between images."""
    masks = [name for name in found.images if NUMBERED.fullmatch(_stem(name))]
    known = set(masks)
    rows, taken = _match([name for name in found.images if name not in known], masks, "", "", joined)
    split_of = {folder: split for split, folder in splits.items()}
    parts = [row.name.split("/")[:-1] for row in rows]
    own_splits = [split_of.get(folders[0], "") if folders else "" for folders in parts]
    parts = [folders[1:] if split else folders for folders, split in zip(parts, own_splits, strict=True)]
    shared = next(
        (depth for depth, names in enumerate(zip(*parts, strict=False)) if len(set(names)) > 1),
        min(map(len, parts), default=0),
    )
    patients = [folders[shared] if len(folders) > shared else "" for folders in parts]
    ignored = [name for name in (*found.others, *masks) if name not in taken and not name.endswith(".csv")]
    return [
        dataclasses.replace(row, split=split, patient=patient)
        for row, split, patient in zip(rows, own_splits, patients, strict=True)
    ], ignored


def _match(
    images: Iterable[str], masks: Iterable[str], of_images: str, of_masks: str, joined: bool
) -> tuple[list[Row], set[str]]:
    """The images of a folder with their masks in another, or beside them where it is the same; and the masks in use."""
    beside = of_images == of_masks
    numbered: dict[str, list[str]] = collections.defaultdict(list)  # by place and stem of the image
    same: dict[str, list[str]] = collections.defaultdict(list)
    for name in masks:
        stem = without_ending(name.removeprefix(of_masks))
        if match := NUMBERED.fullmatch(stem):
            numbered[match[1]].append(name)
        if not beside:
            same[stem].append(name)
    stems = {name: without_ending(name.removeprefix(of_images)) for name in images}
    twins = collections.Counter(stems.values())
    rows, used = [], set[str]()
    for name, stem in stems.items():
        series = numbered[stem]
        own = sorted({*same[stem], *series})
        used.update(own)
        shown = ", ".join(mask.rpartition("/")[2] for mask in own)
        fault = ""
        if not own:
            fault = f"it has no mask {of_masks}{stem}{'_mask' * beside}.png"
        elif twins[stem] > 1:
            fault = f"{twins[stem]} images have the name {stem.rpartition('/')[2]}, and one mask"
        elif len(own) > len(series) or len({_stem(mask) for mask in own}) < len(own):
            fault = f"it has {len(own)} masks: {shown}; keep one" if len(own) > 1 else ""
        elif len(own) > 1 and not joined:
            fault = f"it has {len(own)} masks: {shown}; with more than two classes make one of them, of class ids"
        rows.append(Row(name, "", masks=() if fault else tuple(own), fault=fault))
    return rows, used


def _stem(name: str) -> str:
    return without_ending(name.rpartition("/")[2])
