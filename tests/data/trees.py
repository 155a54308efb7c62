"""Miniature data sets of generated images, in exactly the layouts that their publishers give away."""

import csv
import gzip
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import openpyxl
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEGBaseline8Bit, SecondaryCaptureImageStorage

from tests.data.images import encoded


class Tree:
    """A folder that is filled with images, each of its own noise."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0

    def picture(self, mode: str = "L", size: tuple[int, int] = (20, 16)) -> Image.Image:
        self.count += 1
        shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
        return Image.fromarray(np.random.default_rng(self.count).integers(0, 256, shape, np.uint8))

    def image(self, *names: str, mode: str = "L") -> None:
        for name in names:
            path = self.file(name)
            formats = {"jpeg": "JPEG", "jpg": "JPEG", "png": "PNG", "tif": "TIFF"}
            self.picture(mode).save(path, formats[path.suffix[1:]])

    def file(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def text(self, name: str, lines: Iterable[str]) -> None:
        content = "".join(f"{line}\n" for line in lines).encode()
        self.file(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)

    def table(self, name: str, rows: Sequence[Sequence[object]]) -> None:
        with self.file(name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)


def chest_xray_pneumonia(root: Path) -> None:
    tree = Tree(root)
    for number in range(8):
        tree.image(f"chest_xray/train/NORMAL/IM-{115 + number // 2:04d}-{number % 2 + 1:04d}.jpeg")
        tree.image(f"chest_xray/train/PNEUMONIA/person{number // 2}_bacteria_{number}.jpeg")
    tree.image("chest_xray/train/NORMAL/NORMAL2-IM-0115-0001.jpeg", "chest_xray/val/NORMAL/NORMAL2-IM-1427-0001.jpeg")
    tree.image("chest_xray/val/PNEUMONIA/person1_bacteria_4874.jpeg")
    tree.image("chest_xray/test/NORMAL/IM-0115-0001.jpeg", "chest_xray/test/NORMAL/NORMAL2-IM-0029-0001.jpeg")
    tree.image("chest_xray/test/PNEUMONIA/person1_virus_6.jpeg", "chest_xray/test/PNEUMONIA/person8_virus_28.jpeg")


def covid_ct(root: Path) -> None:
    tree = Tree(root)
    files: dict[str, list[str]] = {
        "COVID": [f"2020.03.01.2002959{n}-p15-109%{n}.png" for n in range(10)],
        "NonCOVID": [f"{n}.jpg" if n % 2 else f"{n}%1.png" for n in range(10)],
    }
    for kind, names in files.items():
        for split, part in {"train": names[:6], "val": names[6:8], "test": names[8:]}.items():
            tree.text(f"Data-split/{kind}/{split}CT_{kind}.txt", part)
        tree.image(*(f"Images-processed/CT_{kind}/{name}" for name in names))
    rows = [[name.removesuffix(".png"), f"Patient {n // 2}", "", "a CT"] for n, name in enumerate(files["COVID"])]
    excel(tree.file("COVID-CT-MetaInfo.xlsx"), [["File name", "Patient ID", "Age", "Captions"], *rows])
    pairs = [[n, name, f"patient {n // 2}"] for n, name in enumerate(files["NonCOVID"])]
    tree.table("NonCOVID-CT-MetaInfo.csv", [["", "image", "patient"], *pairs])


def excel(path: Path, rows: Sequence[Sequence[object]]) -> None:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.create_sheet("another").append(["not read"])
    book.save(path)


def sars_cov2_ct(root: Path) -> None:
    tree = Tree(root)
    for number in range(1, 11):
        tree.image(f"COVID/Covid ({number}).png", f"non-COVID/Non-Covid ({number}).png", mode="RGB")


def dicom(
    pixels: np.ndarray,
    kind: str = "MONOCHROME2",
    bits: int = 8,
    syntax: str = JPEGBaseline8Bit,
    patient: str = "0004cfab",
) -> bytes:
    """A DICOM file; the defaults are those of the RSNA challenge: a JPEG, here in two fragments."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.PatientID = SecondaryCaptureImageStorage, "1.2.3", patient
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, kind, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * pixels.dtype.itemsize, bits, bits - 1
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        dataset.PixelData = encapsulate([encoded(Image.fromarray(pixels), "jpg")], fragments_per_frame=2)
    else:
        dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _cohen(tree: Tree, covid: int, pneumonia: int) -> list[tuple[str, str, str]]:
    """The ieee8023 collection: patient, file and finding of its frontal radiographs."""
    header = ["patientid", "offset", "finding", "view", "modality", "folder", "filename", "clinical_notes"]
    rows: list[list[object]] = []
    found: list[tuple[str, str, str]] = []
    kinds = [("Pneumonia/Viral/COVID-19", covid), ("SARS", pneumonia)]
    for finding, count in kinds:
        for number in range(count):
            patient, file = str(len(found) // 2), f"{finding.split('/')[-1].lower()}-{number}.jpg"
            rows.append([patient, 0, finding, "PA", "X-ray", "images", file, "a note,\nof two lines"])
            found.append((patient, file, finding.split("/")[-1]))
    rows.append(["77", 0, "Pneumonia/Viral/COVID-19", "L", "X-ray", "images", "lateral.jpg", ""])
    rows.append(["78", 0, "No Finding", "PA", "X-ray", "images", "healthy.jpg", ""])
    tree.table("covid-chestxray-dataset/metadata.csv", [header, *rows])
    tree.image(*(f"covid-chestxray-dataset/images/{row[6]}" for row in rows))
    return found


def covidx(root: Path) -> None:
    tree = Tree(root)
    cohen = _cohen(tree, covid=14, pneumonia=4)
    uuids = [f"{number:08x}-e1f4-4f0f" for number in range(24)]
    for uuid in uuids:
        path = f"rsna-pneumonia-detection-challenge/stage_2_train_images/{uuid}.dcm"
        tree.file(path).write_bytes(dicom(np.asarray(tree.picture())))
    tree.image("Figure1-COVID-chestxray-dataset/images/COVID-00001.jpg")
    tree.image("Actualmed-COVID-chestxray-dataset/images/CR.1.2.840.113564.png")
    rsna = [f"{uuid} {uuid}.png {('normal', 'pneumonia')[number % 2]}" for number, uuid in enumerate(uuids)]
    labels = {"COVID-19": "COVID-19", "SARS": "pneumonia"}
    lines = [f"{patient} {file} {labels[finding]}" for patient, file, finding in cohen]
    own = ["COVID-00001 COVID-00001.jpg COVID-19", "CR CR.1.2.840.113564.png COVID-19"]
    tree.text("covidx_lists/train_COVIDx2.txt.gz", rsna[:12] + lines[:6] + lines[14:16] + own)
    tree.text("covidx_lists/test_COVIDx2.txt", rsna[12:18] + lines[6:8] + lines[16:18])
    tree.text("covidx_lists/val_rsna_normal_reconstructed.txt", rsna[18::2])
    tree.text("covidx_lists/val_rsna_pneumonia_reconstructed.txt", rsna[19::2])


def rsna_cohen(root: Path) -> None:
    tree = Tree(root)
    _cohen(tree, covid=20, pneumonia=10)
    folder = "rsna-pneumonia-detection-challenge"
    classes, boxes = [["patientId", "class"]], [["patientId", "x", "y", "width", "height", "Target"]]
    for number in range(30):
        uuid, ill = f"{number:08x}-cc4f", number % 2
        tree.file(f"{folder}/stage_2_train_images/{uuid}.dcm").write_bytes(dicom(np.asarray(tree.picture())))
        for box in range(1 + (ill and number % 3)):
            classes.append([uuid, "Lung Opacity" if ill else "Normal"])
            boxes.append([uuid, str(box), "2", "3", "4", str(ill)])
    classes.append(["ffffffff-cc4f", "No Lung Opacity / Not Normal"])
    boxes.append(["ffffffff-cc4f", "", "", "", "", "0"])
    tree.table(f"{folder}/stage_2_detailed_class_info.csv", classes)
    tree.table(f"{folder}/stage_2_train_labels.csv", boxes)


def darkcovid(root: Path) -> None:
    tree = Tree(root)
    for number in range(12):
        tree.image(f"X-Ray Image DataSet/No_findings/{1280 + number // 2:08d}_{number % 2:03d}.png")
        tree.image(f"X-Ray Image DataSet/Pneumonia/{1284 + number // 2:08d}_{10 + number % 2:03d}.png")
    files = [f"covid-19-pneumonia-{number}-PA" for number in range(10)]
    tree.image(*(f"X-Ray Image DataSet/Covid-19/{file}.jpg" for file in files))
    rows = [[str(number // 2), f"{file}.jpeg"] for number, file in enumerate(files)]
    tree.table("metadata.csv", [["patientid", "filename"], *rows])


def lgg_mri(root: Path) -> None:
    tree = Tree(root)
    for patient in range(10):
        name = f"TCGA_{('CS', 'DU')[patient % 2]}_49{patient}_19970222"
        for number in (1, 2, 10):
            tree.image(f"kaggle_3m/{name}/{name}_{number}.tif", mode="RGB")
            mask = np.zeros((16, 20), np.uint8)
            mask[:patient, : 2 * number] = 255
            Image.fromarray(mask).save(tree.file(f"kaggle_3m/{name}/{name}_{number}_mask.tif"))
    tree.table("kaggle_3m/data.csv", [["Patient", "RNASeqCluster"], ["TCGA_CS_490", "2"]])
    tree.text("kaggle_3m/README.md", ["LGG Segmentation Dataset"])


def covid_ct_seg(root: Path) -> None:
    tree = Tree(root)
    nifti(tree.file("tr_im.nii.gz"), tree.file("tr_mask.nii.gz"), 10)
    tree.file("val_im.nii.gz").write_bytes(b"not read")
    for number in range(1, 10):
        nifti(tree.file(f"rp_im/{number}.nii.gz"), tree.file(f"rp_msk/{number}.nii.gz"), 2 + number % 2)


def nifti(image: Path, mask: Path, depth: int) -> None:
    """A volume [x, y, z] whose values rise along x, with all four classes in every slice of its mask."""
    values = np.tile(np.linspace(-1500, 300, 20, dtype=np.float32)[:, None, None], (1, 16, depth))
    ids = np.zeros((20, 16, depth), np.uint8)
    ids[:, 12:], ids[:10, 12:], ids[2:4, 1:3] = 1, 2, 3
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])  # x to the left and y to the back of the patient, as CT is stored
    nibabel.save(nibabel.Nifti1Image(values, affine), image)
    nibabel.save(nibabel.Nifti1Image(ids, affine), mask)


def csv_labels(root: Path) -> None:
    tree = Tree(root)
    files = [f"images/{number}.png" for number in range(20)]
    tree.image(*files)
    rows = [[file, ("cat", "dog")[n % 2], f"p{n // 2}", "house"] for n, file in enumerate(files)]
    tree.table("images.csv", [["path", "label", "patient", "source"], *rows])


def csv_masks(root: Path) -> None:
    tree = Tree(root)
    files = [f"{number}.png" for number in range(10)]
    tree.image(*(f"images/{file}" for file in files))
    for number, file in enumerate(files):
        Image.fromarray(np.full((16, 20), number % 3, np.uint8)).save(tree.file(f"masks/{file}"))
    rows = [[f"images/{file}", f"masks/{file}", ("train", "val", "test")[n % 3]] for n, file in enumerate(files)]
    tree.table("images.csv", [["path", "mask", "split"], *rows])
    tree.text("mask_classes.txt", ["background", "lung", "heart"])


# Data set: what makes its tree, and the images of each split that come out.
# Sets of findings and of lungs: tests/data/test_prepare_findings.py.
ELSEWHERE = frozenset(
    ("chestxray14", "chexpert", "jsrt", "medmnist", "montgomery", "padchest", "shenzhen", "vindr_cxr")
)
TREES: dict[str, tuple[Callable[[Path], None], dict[str, int]]] = {
    "chest_xray_pneumonia": (chest_xray_pneumonia, {"train": 19, "test": 4}),
    "chest_xray_pneumonia_printed": (chest_xray_pneumonia, {"train": 17, "val": 2, "test": 4}),
    "covid_ct": (covid_ct, {"train": 12, "val": 4, "test": 4}),
    "covid_ct_printed": (covid_ct, {"train": 11, "val": 2, "test": 6}),
    "covid_ct_seg/slices": (covid_ct_seg, {"train": 7, "val": 1, "test": 2}),
    "covid_ct_seg/volumes": (covid_ct_seg, {}),
    "covidx/plus": (covidx, {"train": 22, "val": 12, "test": 10}),
    "covidx/mini": (covidx, {"train": 22, "val": 12, "test": 10}),
    "csv/labels": (csv_labels, {"train": 14, "val": 2, "test": 4}),
    "csv/masks": (csv_masks, {"train": 4, "val": 3, "test": 3}),
    "darkcovid": (darkcovid, {}),
    "lgg_mri": (lgg_mri, {"train": 21, "val": 3, "test": 6}),
    "rsna_cohen/boxes": (rsna_cohen, {}),
    "rsna_cohen/images": (rsna_cohen, {}),
    "sars_cov2_ct": (sars_cov2_ct, {"train": 14, "val": 2, "test": 4}),
    "sars_cov2_ct_printed": (sars_cov2_ct, {"train": 16, "val": 2, "test": 2}),
}


def make(name: str, root: Path) -> Path:
    """The tree of a data set below `root`."""
    TREES[name][0](root)
    return root


def pixels(content: bytes) -> np.ndarray:
    """The pixels of an encoded image."""
    return np.asarray(Image.open(io.BytesIO(content)))
