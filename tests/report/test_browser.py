"""Each page reads well on a phone and on a desk in Chromium, and is HTML to a strict parser."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import html5lib
import numpy as np
import pytest
from PIL import Image

from covidjax.config import default_config
from covidjax.report import checklist, folds, run
from covidjax.runs import audit, compare
from tests.report import made_workdir, test_report_segmentation

WIDTHS = (390, 1280)
CHROMIUM = shutil.which("chromium")
FRAMES = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>frames</title></head><body>
{frames}<pre id="found"></pre><script>
window.onload = () => {{
  const found = {{}};
  for (const frame of document.getElementsByTagName('iframe')) {{
    const page = frame.contentDocument;
    for (const detail of page.querySelectorAll('details')) detail.open = true;
    found[frame.width] = {{
      width: page.documentElement.scrollWidth,
      images: page.images.length,
      broken: [...page.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.alt),
    }};
  }}
  document.getElementById('found').textContent = JSON.stringify(found);
}};
</script></body></html>"""


def of_labels(folder: Path) -> Path:
    made_workdir.write_config(folder)
    made_workdir.write_metrics(folder)
    made_workdir.write_run(folder)
    examples = {split: made_workdir.make_examples(split) for split in ("test", "val")}
    for split, each in examples.items():
        made_workdir.write_evaluation(folder, each, len(split))
    return run.write(folder, examples)


def of_masks(folder: Path) -> Path:
    names = {"model": {"name": "unet"}, "dataset": {"name": "phantom"}, "checkpoint": {"best": "dice"}}
    (folder / "config.json").write_text(json.dumps({**names, "freeze": "none"}))
    made_workdir.write_run(folder)
    examples = test_report_segmentation.make_examples("test")
    test_report_segmentation.write_evaluation(folder, examples)
    return run.write(folder, {"test": examples})


def of_compared_runs(folder: Path) -> Path:
    runs = [folder / name for name in ("first", "second_with_a_long_name", "third")]
    for seed, own in enumerate(runs):
        own.mkdir()
        made_workdir.write_config(own)
        made_workdir.write_run(own)
        made_workdir.write_evaluation(own, made_workdir.make_examples("test"), seed)
    return compare.write(folder / "compare.json", compare.compare(runs, "test"))


def of_an_audit(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        for label in ("healthy", "ill"):
            (folder / "data" / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (40, 60 if label == "ill" else 40), np.uint8)
                Image.fromarray(pixels).save(folder / "data" / split / label / f"{number}.png")
    shutil.copy(folder / "data" / "train" / "ill" / "0.png", folder / "data" / "test" / "ill" / "copy.png")
    config = default_config()
    config.dataset.name, config.dataset.root = "folder", str(folder / "data")
    audit.audit(config, folder / "audit.json")
    return folder / "audit.html"


def of_folds(folder: Path) -> Path:
    figure = {"pooled": 0.8, "pooled_ci95": [0.7, 0.9], "mean": 0.79, "spread": 0.04}
    row = {"num_examples": 20, "accuracy": 0.8, "accuracy_ci95": [0.6, 0.95]}
    result = {
        "num_folds": 5, "num_examples": 100, "num_patients": 60, "titles": {"accuracy": "Accuracy"},
        "figures": {"accuracy": figure}, "folds": [{"fold": fold, **row} for fold in range(5)],
        "methods": {"pooled": "all images together"}, "config": {"model": {"name": "cnn"}},
    }  # fmt: skip
    return folds.write(folder / "folds.html", result)


def of_checklists(folder: Path) -> Path:
    return of_labels(folder).with_name(checklist.NAME)


PAGES = (of_labels, of_checklists, of_masks, of_compared_runs, of_an_audit, of_folds)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: Debian has it as the package chromium")
@pytest.mark.parametrize("make", PAGES)
def test_pages_fit_phone_and_desk_and_show_every_image(make: Callable[[Path], Path], tmp_path: Path) -> None:
    page = make(tmp_path)
    frames = "".join(
        f'<iframe src="{page.relative_to(tmp_path)}" width="{width}" height="900" style="border:0"></iframe>'
        for width in WIDTHS
    )
    (tmp_path / "frames.html").write_text(FRAMES.format(frames=frames))
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--enable-logging=stderr")
    address = (f"--user-data-dir={tmp_path}/profile", "--dump-dom", f"file://{tmp_path}/frames.html")
    told = subprocess.run((str(CHROMIUM), *flags, *address), capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(re.findall(r'<pre id="found">(.*?)</pre>', told.stdout)[0])
    for width in map(str, WIDTHS):
        assert found[width]["width"] <= int(width), f"scrolls sideways at {width}"
        assert found[width]["broken"] == []
        assert found[width]["images"] == sum("src" in own for _, own in made_workdir.Page(page.read_text()).tags)
    assert "CONSOLE" not in told.stderr


@pytest.mark.parametrize("make", PAGES)
def test_pages_are_html_to_a_strict_parser(make: Callable[[Path], Path], tmp_path: Path) -> None:
    content = make(tmp_path).read_text()
    html5lib.HTMLParser(strict=True).parse(content)
    made_workdir.assert_self_contained(content)
