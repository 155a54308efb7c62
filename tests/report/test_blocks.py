"""Every kind of block that a task can make is drawn and written, and its texts stay texts."""

import typing

import numpy as np
import pytest

from covidjax.report import page
from covidjax.tasks.page import (
    Block,
    Column,
    ConfusionMatrix,
    Heading,
    Histogram,
    Items,
    Legend,
    Picture,
    Pictures,
    Reliability,
    Row,
    Table,
    Text,
)
from tests.report.made_workdir import Page

TEXT = "<b>R&D</b>"
IMAGE, MASK = np.zeros((8, 8, 1), np.uint8), np.eye(8, dtype=np.uint8)
BLOCKS = (
    Heading(TEXT),
    Text(TEXT),
    Items((TEXT,)),
    Table((Column(TEXT, "name", "text"), Column("age", "age")), [{"name": TEXT, "age": 61.25, "age_ci95": [58, 64.5]}]),
    ConfusionMatrix((TEXT, "b"), [[3, 1], [0, 0]]),
    Reliability(np.array([0.6, 0.9]), np.array([True, False]), 0.25),
    Histogram(np.array([0.5, 0.9]), "Dice", "images", TEXT),
    Legend("classes", ("background", TEXT)),
    Pictures([Picture(IMAGE, TEXT, ((TEXT, "small"),)), Picture(IMAGE, TEXT, ((TEXT, "right"),), (MASK, MASK))]),
    Row(((Heading(TEXT),), (Text("right"),))),
)


def test_every_kind_is_tried() -> None:
    assert {type(block) for block in BLOCKS} == set(typing.get_args(Block))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: type(block).__name__)
def test_texts_of_a_block_stay_texts(block: Block) -> None:
    written = str(page.block_html(block))
    read = Page(written)
    told = [read.text, *(attributes.get("alt") or "" for _, attributes in read.tags)]
    assert isinstance(block, Reliability) or any(TEXT in text for text in told)
    assert written.count("<b>") == (4 if isinstance(block, ConfusionMatrix) else 0)  # its own ones


def test_table_shows_a_figure_with_its_interval() -> None:
    assert Page(str(page.block_html(BLOCKS[3]))).tables == [[[TEXT, "age"], [TEXT, "61.250 [58.000, 64.500]"]]]
