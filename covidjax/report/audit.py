"""The page of an audit: verdict, findings with pairs of pictures, cues, counts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from covidjax.report import page as pages

TITLES = {"serious": "Serious", "warning": "Warnings", "note": "Notes"}


def page(result: Mapping[str, Any], pictures: Mapping[str, np.ndarray]) -> str:
    """HTML of what audit.json holds. pictures: [height, width, 1] uint8 by the names of images in pairs."""
    found = result["findings"]
    grouped = {
        kind: [one for one in found if one["seriousness"] == kind]
        for kind in TITLES
        if any(one["seriousness"] == kind for one in found)
    }
    counts = []
    for row in result["counts"]:
        splits = {
            split: f"{row[split]} ({row[f'{split}_patients']})" if result["patients_known"] else row[split]
            for split in ("train", "val", "test")
        }
        darkest, brightest = row.get("levels", (None, None))
        counts.append({**row, **splits, "darkest": darkest, "brightest": brightest})
    return pages.render(
        "audit.html",
        title=f"Audit of {Path(result['root']).name}",
        sections={kind: TITLES[kind] for kind in grouped} | {"cues": "Shortcuts", "counts": "Images and patients"},
        result=result,
        grouped=grouped,
        counts=counts,
        cues=[{**row, "told": row.get("class", "the same in all images")} for row in result["cues"]],
        pictures=pictures,
    )
