"""Buda, Saha, Mazurowski, Computers in Biology and Medicine 109 (2019): brain MRI with masks of abnormality."""

from pathlib import Path

from covidjax.data.datasets.base import ManualBuilder
from covidjax.data.datasets.records import Listing, Record, inside

MASK = "_mask.tif"


class LggMri(ManualBuilder):
    """Slices of brain MRI (pre-contrast, FLAIR, post-contrast as the three channels) of 110 patients with glioma.

    Masks: 0 background, 1 FLAIR abnormality. The split is drawn by patient; the source is the institution in the
    name of the patient.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "download archive.zip of https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation and unpack it in "
        "MANUAL_DIR, so that MANUAL_DIR/kaggle_3m/TCGA_.../TCGA_..._1.tif and TCGA_..._1_mask.tif are there"
    )
    MASK_CLASSES = ("background", "abnormality")
    PUBLISHED = {"all": {"": 3929}}

    def list_records(self, root: Path) -> Listing:
        """The pairs of every patient's folder."""
        listing, root = Listing(), inside(root, "kaggle_3m")
        folders = sorted(path for path in root.glob("TCGA_*") if path.is_dir())
        if not folders:
            listing.images(root, (".tif",))
            listing.faults.append(f"{root} has no folders TCGA_...")
        for folder in folders:
            files = listing.images(folder, (".tif",))
            masks = {path.name for path in files if path.name.endswith(MASK)}
            images = [path for path in files if path.name not in masks]
            for path in images:
                mask = path.with_name(path.stem + MASK)
                if mask.name not in masks:
                    listing.faults.append(f"{folder.name}/{path.name} has no mask {mask.name}")
                    continue
                name, source = f"{folder.name}/{path.name}", folder.name.split("_")[1]
                listing.records.append(Record(name, path, patient=folder.name, source=source, mask=mask))
            alone = masks - {path.stem + MASK for path in images}
            listing.faults += [f"{folder.name}/{name} has no image" for name in sorted(alone)]
        if folders and len(folders) != 110:
            listing.notes.append(f"{len(folders)} patients; published are 110")
        return listing
