"""Any images with a table."""

from pathlib import Path

import tensorflow_datasets as tfds

from covidjax.data.datasets.base import ManualBuilder
from covidjax.data.datasets.records import Listing, Record
from covidjax.data.examples import SPLITS

TABLE, NAMES = "images.csv", "mask_classes.txt"


class Csv(ManualBuilder):
    """Images of a table: `labels` with a class each, or `masks` with a mask each."""

    name = "csv"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"write MANUAL_DIR/{TABLE} with the columns path (below MANUAL_DIR), label (a name; for csv/masks instead "
        "mask, a path) and, if you know them, patient, source and split (train, val, test; in all rows or in none); "
        f"the names of more than two classes of masks go into MANUAL_DIR/{NAMES}, one a line, the background first"
    )
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("labels", "masks")]

    def has_masks(self) -> bool:
        """As the variant says."""
        return self.builder_config.name == "masks"

    def list_records(self, root: Path) -> Listing:
        """The rows of the table; the classes are its labels, sorted."""
        listing, kind = Listing(), "mask" if self.has_masks() else "label"
        rows = listing.table(root / TABLE, ("path", kind))
        if len({bool(row.get("split")) for row in rows}) > 1:
            listing.faults.append(f"{TABLE} has rows with a split and rows without one")
        for number, row in enumerate(rows, start=2):
            faults = _faults(root, row, kind)
            listing.faults += [f"{TABLE} line {number}: {fault}" for fault in faults]
            if not faults:
                mask = root / row["mask"] if self.has_masks() else None
                label, image = "" if mask else row["label"], root / row["path"]
                patient, source, split = (row.get(key, "") for key in ("patient", "source", "split"))
                listing.records.append(Record(row["path"], image, label, patient, source, split, mask))
        if self.has_masks():
            named = listing.lines(root / NAMES) if (root / NAMES).exists() else ("background", "foreground")
            self.MASK_CLASSES = tuple(named)
        else:
            self.CLASSES = tuple(sorted({record.label for record in listing.records}))
        return listing


def _faults(root: Path, row: dict[str, str], kind: str) -> list[str]:
    faults = [f"there is no {key}" for key in ("path", kind) if not row[key]]
    paths = [row[key] for key in ("path", "mask") if row.get(key) and key in ("path", kind)]
    faults += [f"{path} is not in {root}" for path in paths if not (root / path).is_file()]
    if row.get("split", "") not in ("", *SPLITS):
        faults.append(f"split is {row['split']!r}; allowed: train, val, test")
    return faults
