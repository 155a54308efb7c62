import numpy as np

from covidjax.tasks import pictures

IMAGE = np.full((6, 8, 1), 100, np.uint8)
MASK = np.zeros((6, 8), np.uint8)
MASK[1:5, 1:5], MASK[1:5, 5:7] = 1, 2


def test_only_what_is_masked_is_painted() -> None:
    painted = pictures.paint(IMAGE, MASK)
    assert painted.shape == (6, 8, 3)
    assert (painted[MASK == 0] == 100).all()
    assert (painted[MASK != 0] != 100).any(axis=-1).all()


def test_each_class_has_its_colour_on_its_border() -> None:
    painted, edge = pictures.paint(IMAGE, MASK, opacity=0.0), pictures.border(MASK)
    for class_id in (1, 2):
        of_class = painted[edge & np.equal(MASK, class_id)]
        assert len(of_class)
        assert {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in of_class} == {pictures.color(class_id)}
    assert (painted[~edge] == 100).all()


def test_border_lies_within_its_class_and_is_one_pixel_wide() -> None:
    edge = pictures.border(MASK)
    assert not edge[MASK == 0].any()
    assert not edge[2:4, 2:4].any()
    assert edge[1, 1:7].all()
    assert edge[1:5, 5].all()  # between two classes it lies in the higher one
    assert not edge[2:4, 4].any()


def test_mask_at_the_edge_of_the_image_has_no_border_there() -> None:
    assert not pictures.border(np.ones((4, 4), np.uint8)).any()


def test_two_classes_are_written_black_and_white_and_more_as_ids() -> None:
    mask = np.array([[0, 1]], np.uint8)
    assert pictures.values(mask, 2).tolist() == [[0, 255]]
    assert pictures.values(MASK, 3).tolist() == MASK.tolist()


def test_enlarging_repeats_pixels() -> None:
    large = pictures.enlarge(MASK, 20)
    assert large.shape == (18, 24)
    assert (large[::3, ::3] == MASK).all()
    assert pictures.enlarge(MASK, 8) is not MASK
    assert pictures.enlarge(MASK, 8).tolist() == MASK.tolist()


def test_legend_stands_below_the_picture_and_leaves_it_as_it_is() -> None:
    picture = pictures.side_by_side(IMAGE, pictures.paint(IMAGE, MASK))
    assert picture.shape == (6, 8 + pictures.GAP + 8, 3)
    wide = np.repeat(picture, 20, axis=1)
    with_legend = np.asarray(pictures.with_legend(wide, ("background", "lung", "lesion")))
    assert with_legend.shape == (6 + pictures.STRIP, wide.shape[1], 3)
    assert (with_legend[:6] == wide).all()
    strip = {tuple(pixel) for pixel in with_legend[6:].reshape(-1, 3).tolist()}
    assert {tuple(bytes.fromhex(pictures.color(number)[1:])) for number in (1, 2)} <= strip


def test_pixels_that_differ_are_coloured_by_how_and_all_others_darkened() -> None:
    predicted = MASK.copy()
    predicted[1, 1], predicted[0, 0], predicted[1, 6] = 0, 2, 1  # missed, found where nothing is, another class
    shown = pictures.disagreement(IMAGE, MASK, predicted)
    hues = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in (shown[1, 1], shown[0, 0], shown[1, 6])]
    assert hues == [hue for _, hue in pictures.ERRORS]
    assert (shown[predicted == MASK] == 60).all()
