"""Folders of images: `root/train|val|test/<class>/<image>`, with the patients in `root/folds.csv` if it is there."""

from pathlib import Path

from ml_collections import ConfigDict

from covidjax.data.decode import decode
from covidjax.data.examples import SPLITS, Examples
from covidjax.data.listing import ImageFiles, Row, choose_split, some_of, table_rows, visible
from covidjax.data.picture import SUFFIXES
from covidjax.errors import UserError

COLUMNS = ("file", "label", "patient", "split", "fold")
LAYOUT = f"expected layout: root/train|val|test/<class>/<image>, images ending in {' '.join(SUFFIXES)}"


def load(dataset: ConfigDict, split: str) -> Examples:
    """One split. No image file of another split is opened.

    images: [n, image_size, image_size, channels] uint8; see `covidjax.data.decode.decode`
    Reads `dataset.{root, fold}` and what `decode` reads. Raises UserError for a wrong layout, table or file.
    """
    examples = decode(list_files(dataset, split), dataset)
    missing = [name for label, name in enumerate(examples.classes) if label not in set(examples.labels.tolist())]
    if split == "train" and missing:
        raise UserError(f"no good training image is left in class {', '.join(missing)}: mend its files")
    return examples


def list_files(dataset: ConfigDict, split: str) -> ImageFiles:
    """The files of one split in the order of their names, with classes and patients; opens only folds.csv.

    Classes are the sorted folder names of train. Names that begin with a dot are passed over.
    `dataset.fold` -1: the split is the folder's; without a val folder a fixed eighth of train is held out, by patient
    if there is a folds.csv. `dataset.fold` k: see `covidjax.data.splits.assign_fold`, with the rows in their order.
    Raises UserError for a wrong layout or table.
    """
    root = Path(dataset.root).expanduser()
    rows, notes = _scan(root)
    table = root / "folds.csv"
    patients_known = table.exists()
    if patients_known:
        rows = table_rows(table, COLUMNS, "{split}/{label}/{file}", rows)
    else:
        notes.append("no patient ids: the split is image-level")
    classes = tuple(sorted({row.label for row in rows}))
    files = ImageFiles(root, tuple(rows), classes, patients_known, tuple(notes))
    return choose_split(files, split, dataset.fold, table, f"{root / split} does not exist; {LAYOUT}")


def _scan(root: Path) -> tuple[list[Row], list[str]]:
    """The images of all splits, in order, and notes on what was ignored."""
    for path in (root, root / "train"):
        if not path.is_dir():
            raise UserError(f"{path} does not exist or is no folder; {LAYOUT}")
    rows: list[Row] = []
    ignored: list[str] = []
    empty: list[str] = []
    class_folders: dict[str, list[str]] = {}
    for split in SPLITS:
        entries = visible(root / split, LAYOUT) if (root / split).is_dir() else []
        class_folders[split] = [path.name for path in entries if path.is_dir()]
        ignored += [f"{split}/{path.name}" for path in entries if not path.is_dir()]
        for label in class_folders[split]:
            files = visible(root / split / label, LAYOUT)
            images = {path.name for path in files if path.suffix.lower() in SUFFIXES and not path.is_dir()}
            rows += [Row(f"{split}/{label}/{name}", split, label) for name in sorted(images)]
            ignored += [f"{split}/{label}/{path.name}" for path in files if path.name not in images]
            if not images:
                empty.append(str(root / split / label))
    if not class_folders["train"]:
        raise UserError(f"{root / 'train'} has no class folders; {LAYOUT}")
    if class_folders["train"] == ["images", "masks"]:
        raise UserError(
            f"{root / 'train'} holds images and their masks, which are no classes: choose a network for segmentation, "
            "such as config.model.name='unet'"
        )
    if empty:
        raise UserError(f"class folders without images: {', '.join(empty)}; fill or remove them; {LAYOUT}")
    for split in SPLITS[1:]:
        unknown = sorted(set(class_folders[split]) - set(class_folders["train"]))
        if unknown:
            raise UserError(
                f"{root / split} has classes that train lacks: {', '.join(unknown)}; "
                f"allowed: {', '.join(class_folders['train'])}"
            )
    notes = []
    if ignored:
        notes.append(
            f"{len(ignored)} entries are no images by their ending or place and were ignored: {some_of(ignored)}"
        )
    return rows, notes
