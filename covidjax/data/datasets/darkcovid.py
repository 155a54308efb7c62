"""Ozturk et al., Computers in Biology and Medicine 121 (2020) 103792: the radiographs of DarkCovidNet."""

import re
from pathlib import Path

from covidjax.data.datasets.base import ManualBuilder
from covidjax.data.datasets.records import Listing, Record, inside

FOLDERS = {"no_findings": "No_findings", "pneumonia": "Pneumonia", "covid19": "Covid-19"}
NIH = re.compile(r"(\d{8})_\d{3}\.")


class Darkcovid(ManualBuilder):
    """Chest radiographs of DarkCovidNet: 500 without findings, 500 with pneumonia (both NIH), 125 with COVID-19.

    The patient is the number in the names of NIH, and for COVID-19 that of the ieee8023 table, if it is given.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "git clone https://github.com/muhammedtalo/COVID-19 and put its folder 'X-Ray Image DataSet' (Covid-19, "
        "No_findings, Pneumonia) into MANUAL_DIR; for the patients with COVID-19 also metadata.csv of "
        "https://github.com/ieee8023/covid-chestxray-dataset"
    )
    CLASSES = tuple(FOLDERS)
    PUBLISHED = {"all": {"no_findings": 500, "pneumonia": 500, "covid19": 125}}

    def list_records(self, root: Path) -> Listing:
        """All images."""
        listing, table = Listing(), root / "metadata.csv"
        rows = listing.table(table, ("patientid", "filename")) if table.exists() else []
        patients = {Path(row["filename"]).stem: f"cohen-{row['patientid']}" for row in rows}
        if not table.exists():
            listing.notes.append(f"the patients with COVID-19 are unknown: put metadata.csv of ieee8023 into {root}")
        for label, name in FOLDERS.items():
            for path in listing.images(inside(root, "X-Ray Image DataSet") / name):
                nih = NIH.match(path.name)
                patient = f"nih-{nih[1]}" if nih else patients.get(path.stem, "")
                source = "nih" if nih else "cohen"
                listing.records.append(Record(f"{name}/{path.name}", path, label, patient, source))
        return listing
