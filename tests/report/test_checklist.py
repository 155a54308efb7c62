"""The page of items has what the run can say, and blanks for what only its author can."""

import csv
import html
import re
from pathlib import Path

import pytest

from covidjax.report import checklist, run
from tests.report import made_workdir

CLAIM, TRIPOD = "CLAIM 2024", "TRIPOD+AI"


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """The answer of each item of a run whose splits were evaluated, '' of a blank."""
    folder = tmp_path_factory.mktemp("run")
    made_workdir.write_config(folder)
    made_workdir.write_run(folder)
    for split in ("test", "val"):
        made_workdir.write_evaluation(folder, made_workdir.make_examples(split))
    run.write(folder, {})
    content = (folder / checklist.NAME).read_text()
    made_workdir.assert_self_contained(content)
    found = {}
    for number, part in enumerate(re.split(r'<section id="list\d">', content)[1:]):
        for item, answer in re.findall(r"<dt><b>(\w+)</b>.*?</dt>\n<dd[^>]*>(.*?)</dd>", part):
            found[(CLAIM, TRIPOD)[number], item] = html.unescape(answer).strip()
    return found


def test_each_item_of_both_lists_is_there_once(items: dict[tuple[str, str], str]) -> None:
    with checklist.ITEMS.open(newline="") as file:
        rows = [(row["guideline"], row["number"]) for row in csv.DictReader(file)]
    assert len(set(rows)) == len(rows) and list(items) == rows
    assert [number for name, number in rows if name == CLAIM] == [str(number) for number in range(1, 45)]
    whole = [int(re.sub(r"[a-z]", "", number)) for name, number in rows if name == TRIPOD]
    assert whole == sorted(whole) and set(whole) == set(range(1, 28))


def test_what_the_run_knows_is_filled_and_the_rest_is_blank(items: dict[tuple[str, str], str]) -> None:
    expected = {
        (CLAIM, "20"): "Train by patient, val by patient, test by patient.",
        (CLAIM, "23"): "Python 3.11.9, jax 0.10.2",
        (CLAIM, "24"): "seed 3",
        (CLAIM, "32"): "Test, val; readings of the test split: 1.",
        (TRIPOD, "20a"): "test: 90 images of 60 patients (normal 30",
        (TRIPOD, "23a"): "Test: 90 images, Accuracy 0.",
    }
    for item, part in expected.items():
        assert part in items[item]
    for item in ((CLAIM, "1"), (CLAIM, "16"), (CLAIM, "33"), (CLAIM, "44"), (TRIPOD, "17"), (TRIPOD, "27c")):
        assert items[item] == ""


def test_a_run_without_records_has_a_page_of_blanks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    run.write(tmp_path, {})
    assert (tmp_path / checklist.NAME).read_text().count('class="blank"') > 60
