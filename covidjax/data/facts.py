"""What DICOM files say of their images beside the pixels: patient, view, spacing and source, no word of a person."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from covidjax.console import Progress
from covidjax.data.decode import in_parallel
from covidjax.data.examples import FACTS
from covidjax.data.extra import import_with_extra
from covidjax.data.listing import Row
from covidjax.data.walk import may_be_dicom


def numbered(patient_ids: Sequence[str]) -> tuple[str, ...]:
    """For each PatientID, '' among them, a number in the order in which it first occurs: nothing of it is kept."""
    numbers: dict[str, str] = {}
    return tuple(numbers.setdefault(own, f"dicom-{len(numbers) + 1}") if own else "" for own in patient_ids)


def patients_of(patient_ids: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Patients as `numbered`, and a note. One PatientID of all of several images tells no patients apart: none then."""
    patients = numbered(patient_ids)
    count = len(set(filter(None, patients)))
    if count == 1 and len(patients) > 1 and all(patients):
        note = f"the PatientID of all {len(patients)} DICOM files is the same, and tells no patients apart"
        return ("",) * len(patients), (note,)
    note = f"{count} patients are told apart by the PatientID of DICOM files, which is not kept"
    return patients, (note,) * bool(count)


def columns(root: Path, names: Sequence[str], paths: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """'patient_id', to be kept nowhere, 'view', 'spacing' and 'source' of files below root; {} without DICOM files.

    names: n; paths: where the files of names lie that are not their own. Each column: n, '' where a file says nothing.
    Reads headers of DICOM files, and nothing of others. Raises UserError where the libraries for them are missing.
    """
    chosen = [index for index, name in enumerate(names) if may_be_dicom(name)]
    if not chosen:
        return {}
    dicom = import_with_extra("covidjax.data.formats.dicom", "DICOM files")
    found = [dicom.Facts()] * len(names)
    read = in_parallel(
        lambda number: dicom.facts(root / paths.get(names[chosen[number]], names[chosen[number]])),
        len(chosen),
        Progress("reading headers of DICOM files", len(chosen), patience=5),
    )
    for index, own in zip(chosen, read, strict=True):
        found[index] = own
    return {name: tuple(getattr(own, name) for own in found) for name in ("patient_id", *FACTS)}


def added(
    rows: Sequence[Row], known: bool, root: Path, paths: Mapping[str, str]
) -> tuple[list[Row], bool, tuple[str, ...]]:
    """The rows with what DICOM files say, whether the patients of all are known, and notes.

    known: whether they are already: then they stay.
    """
    found = columns(root, [row.name for row in rows], paths)
    if not found:
        return list(rows), known, ()
    texts = zip(*(found[name] for name in FACTS), strict=True)
    rows = [
        dataclasses.replace(row, **dict(zip(FACTS, own, strict=True))) for row, own in zip(rows, texts, strict=True)
    ]
    if known or not any(found["patient_id"]):
        return rows, known, ()
    patients, notes = patients_of(found["patient_id"])
    if unknown := patients.count("") if any(patients) else 0:
        return rows, known, (f"{unknown} of {len(rows)} images have no PatientID: patients are not told apart by it",)
    rows = [dataclasses.replace(row, patient=patient) for row, patient in zip(rows, patients, strict=True)]
    return rows, bool(patients) and all(patients), notes
