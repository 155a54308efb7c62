"""Predictions for new images from a finished run: a table, and for networks that answer with masks PNG files."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from covidjax import config as configs
from covidjax import files
from covidjax.checkpoint.checkpoint import Which
from covidjax.command import PARTIAL, prepare_process
from covidjax.data.decode import remark_notes
from covidjax.errors import UserError, some_of
from covidjax.evaluate import tiles
from covidjax.evaluate.members import Mixture, load_network
from covidjax.evaluate.network import inference
from covidjax.evaluate.split import chosen_by_validation
from covidjax.evaluate.tiles import Tiling
from covidjax.evaluate.views import Views, price, told, views_of
from covidjax.metrics.validated import Chosen
from covidjax.runs.explain import Explanations, explaining
from covidjax.runs.images import Sources, decoded, list_images
from covidjax.tasks.base import RESEARCH_USE, Predicted, Prediction, Request
from covidjax.weights.workdir import Trained


def run(
    workdir: Path,
    images: Path,
    output: Path,
    *,
    overlays: Path | None,
    checkpoint: Which | None,
    tile: int | None,
    overlap: int | None,
    spacing: tuple[float, ...] | None,
    inside: Path | None,
    inside_at_least: float | None,
    explain: Path | None,
    masks: Path | None,
    calibrated: bool,
    views: int,
    strict: bool,
) -> None:
    """Predicts images with the network of a run, or the mixture of an ensemble, and prints what was written.

    images: see `list_images`; tile, overlap: in pixels, see `Tiling`; calibrated: with what validation chose; views:
    how many of each image; the rest: see `predict`.
    Ends with the status `command.PARTIAL` where images were bad. Raises UserError as these do, for an overlap without
    tiles, and for masks without explanations.
    """
    if masks is not None and explain is None:
        raise UserError("--masks is where explanations should lie: give their folder as --explain")
    if tile is None and overlap is not None:
        raise UserError("--overlap is that of tiles: give --tile as well")
    if inside is None and inside_at_least is not None:
        raise UserError("--inside_at_least is a part of what lies in masks: give their folder as --inside")
    least = 0.9 if inside_at_least is None else inside_at_least
    if not 0 < least <= 1:
        raise UserError(f"--inside_at_least is {least:g}: allowed is above 0 to 1")
    tiling = None if tile is None else Tiling(tile, tile // 4 if overlap is None else overlap)
    prepare_process(configs.of_workdir(workdir).precision)
    sources = list_images(images)
    trained = load_network(workdir, checkpoint)
    if calibrated and isinstance(trained, Mixture):
        raise UserError("--calibrated is of one network, and this is a mixture: give the workdir of a member")
    if views != 1 and (isinstance(trained, Mixture) or tiling is not None):
        raise UserError("--views is of one network and of whole images: leave it out")
    chosen = chosen_by_validation(workdir, trained, views) if calibrated and isinstance(trained, Trained) else None
    several = views_of(trained, views) if isinstance(trained, Trained) else None
    asked: dict[str, Any] = {"explain": explain, "masks": masks, "chosen": chosen, "views": several, "strict": strict}
    found = predict(trained, sources, output, overlays, tiling, spacing, inside, least, **asked)
    ignored = f", {sources.ignored} files that are no images passed over" if sources.ignored else ""
    print(f"{found.num_images} images{ignored}; {trained.origin}")
    if tiling is not None:
        trained_at = f"the network learnt from images brought to {trained.config.dataset.image_size} pixels"
        print(f"taken at their own size: {trained_at}, and is at a loss where things are of another size in pixels")
    counts = ", ".join(f"{name} {count}" for name, count in found.counts.items())
    written = [f"{title}: {path}" for title, path in found.files.items()]
    print(*trained.notes, *sources.notes, *found.notes, f"{found.counted}: {counts}", *written, sep="\n")
    print("Research use only - not for clinical decisions.")
    if found.num_bad:
        raise SystemExit(PARTIAL)


def predict(
    trained: Trained | Mixture,
    sources: Sources,
    output: Path,
    overlays_folder: Path | None = None,
    tiling: Tiling | None = None,
    spacing: tuple[float, ...] | None = None,
    inside: Path | None = None,
    inside_at_least: float = 0.9,
    *,
    explain: Path | None = None,
    masks: Path | None = None,
    chosen: Chosen | None = None,
    views: Views | None = None,
    strict: bool = False,
) -> Predicted:
    """Predicts images; writes the table `output` and, for masks, the folder <stem of output>_masks beside it.

    The table of a classifier or a mixture: file, predicted, probability_<class>. Of masks: file, width, height, mask,
    and pixels_<class>, the area of each class in pixels of the image. Masks are PNG files of the image's own size:
    class ids, or 0 and 255 for two classes. Where DICOM files tell them: patient (a number), view, spacing, source.
    overlays_folder: takes each image beside the image with its mask.
    tiling: images are taken at their own size, in tiles, rather than brought to `dataset.image_size`.
    spacing: millimetres between slices, rows and columns: each folder of images is a stack, and its volumes go to
    <stem of output>_volumes.csv, see `volumes.write_table`.
    inside: a folder of masks that `predict` wrote of the same images with another network. An image of which less than
    `inside_at_least` of the labelled pixels lie in its mask there is dropped: it goes to <stem of output>_dropped.csv
    with that part. One without a labelled pixel has none outside, and is kept.

    explain: a folder for pictures of where a classifier looks, see `runs.explain.explaining`, which takes `masks`.
    chosen: by validation: probabilities get its temperature, and the columns <point>_<class> are 1 where the network's
    own probability reaches the threshold of an operating point, else 0.
    views: of each image, over which logits are averaged; a note tells their price.
    strict: a file that cannot be decoded is an error, as it is of a volume. Else the others are predicted, a note tells
    of it, and the bad ones go to <stem of output>_bad.csv with the reasons.

    What is written has a temporary name until it is whole. Raises UserError, with the bad files, where all are bad or,
    if strict, one is; where a folder of results is not empty; and for what a classifier or a network of masks lacks.
    """
    if output.suffix != ".csv" or output.is_dir():
        raise UserError(f"--output is {output}: name the table that is to be written, such as predictions.csv")
    if "overlays" not in trained.task.offers and any((overlays_folder, tiling, spacing, inside)):
        name = trained.config.model.name
        raise UserError(f"{name} {trained.task.words}: --overlays, --tile, --spacing and --inside are for masks")
    if spacing and inside:
        raise UserError("--inside drops images, and --spacing needs all of a volume: give one of them")
    told = {column: dict(zip(sources.names, texts, strict=True)) for column, texts in sources.facts.items()}
    crop = trained.config.dataset.crop
    request = Request(output, crop, overlays_folder, spacing, tiling is not None, told, inside, inside_at_least)
    shown, strict = overlays_folder is not None, strict or spacing is not None
    bad: dict[str, str] = {}
    costs: list[str] = []
    remarks: dict[str, tuple[str, ...]] = {}

    def noted(found: Iterator[Prediction]) -> Iterator[Prediction]:
        for one in found:
            if one.remarks:
                remarks[one.name] = one.remarks
            yield one

    with contextlib.ExitStack() as stack:
        explanations = None
        if explain is not None:
            if isinstance(trained, Mixture):
                raise UserError("--explain is of one network, and this is a mixture: give the workdir of a member")
            explanations = stack.enter_context(explaining(trained, sources, explain, masks))
        if isinstance(trained, Mixture):
            found = _mixed(trained, sources, bad, strict=strict)
        elif tiling is None:
            found = _answers(
                trained, sources, bad, costs, strict=strict, shown=shown, explanations=explanations, views=views
            )
            found = found if chosen is None else _calibrated(found, chosen)
        else:
            found = _tiled_answers(trained, sources, tiling, bad, strict=strict, shown=shown)
        written = trained.task.write_predictions(noted(found), sources.names, trained.classes, request)
        if explanations is not None:
            told_by, folder = explanations.write_table(), {"explanations": explanations.folder}
            written = dataclasses.replace(written, notes=(*written.notes, *told_by), files={**written.files, **folder})
    notes = (*written.notes, *remark_notes(remarks))
    notes += tuple(costs)
    if chosen is not None and chosen.temperature is not None:
        notes += (f"probabilities have the temperature {chosen.temperature:.3f}, fitted on the validation split",)
    table_of_bad = output.with_name(f"{output.stem}_bad.csv")
    if not bad:
        table_of_bad.unlink(missing_ok=True)  # of an earlier prediction
        return dataclasses.replace(written, notes=notes)
    files.write_csv(table_of_bad, ["file", "reason", "use"], [[*pair, RESEARCH_USE] for pair in sorted(bad.items())])
    listed = some_of((f"{name} ({reason})" for name, reason in sorted(bad.items())), "; ")
    notes = (*notes, f"{len(bad)} of {len(sources.names)} images are bad and were left out: {listed}")
    return dataclasses.replace(written, notes=notes, num_bad=len(bad), files={**written.files, "bad": table_of_bad})


def _answers(
    trained: Trained,
    sources: Sources,
    bad: dict[str, str],
    costs: list[str] | None = None,
    *,
    strict: bool,
    shown: bool = False,
    explanations: Explanations | None = None,
    views: Views | None = None,
) -> Iterator[Prediction]:
    """What a network answers to each image at the size that it sees. bad, strict: see `decoded`.

    costs: takes a sentence on the price of views.
    """
    config = trained.config
    setting = *trained.network, min(config.batch_size, len(sources.names)), jax.local_device_count()
    run = inference(*setting, views)
    for batch in decoded(sources, config.dataset, config.batch_size, bad, strict=strict, shown=shown):
        pixels = np.stack([picture.pixels for picture in batch])
        logits = _finite(run(pixels), trained)
        if views is not None and costs == []:
            costs.append(told(views.count, price(inference(*setting), run, pixels)))
        answers = trained.task.answer(logits, config.loss)
        if explanations is not None:
            explanations.add(batch, answers)
        for picture, answer in zip(batch, answers, strict=True):
            yield Prediction(picture.name, picture.size, answer, picture.shown, picture.remarks)


def _calibrated(found: Iterator[Prediction], chosen: Chosen) -> Iterator[Prediction]:
    for one in found:
        called = {name: int(each[0]) for name, each in chosen.called(one.answer[None]).items()}
        yield dataclasses.replace(one, answer=chosen.calibrated(one.answer[None])[0], called=called)


def _tiled_answers(
    trained: Trained, sources: Sources, tiling: Tiling, bad: dict[str, str], *, strict: bool, shown: bool
) -> Iterator[Prediction]:
    """What a network answers to each image at the image's own size. bad, strict: see `decoded`."""
    run = inference(*trained.network, 1, 1)
    for (picture,) in decoded(sources, trained.config.dataset, 1, bad, strict=strict, shown=shown, own_size=True):
        bands = tiles.blended_logits(lambda tile: run(tile[None])[0], picture.pixels, tiling)
        parts = [trained.task.answer(_finite(band, trained), trained.config.loss) for band in bands]
        yield Prediction(picture.name, picture.size, np.concatenate(parts), picture.shown, picture.remarks)


def _mixed(mixture: Mixture, sources: Sources, bad: dict[str, str], *, strict: bool) -> Iterator[Prediction]:
    """The mixture of what the members answer to each image that all can read. bad, strict: see `decoded`."""
    answers = [
        {one.name: one for one in _answers(member.trained, sources, bad, strict=strict)} for member in mixture.members
    ]
    names = [name for name in answers[0] if name not in bad]
    table = mixture.mix(np.array([[own[name].answer for name in names] for own in answers]))
    for name, answer in zip(names, table, strict=True):
        yield dataclasses.replace(answers[0][name], answer=answer)


def _finite(logits: np.ndarray, trained: Trained) -> np.ndarray:
    if not np.isfinite(logits).all():
        raise UserError(f"the network of step {trained.step} answers with what is no number: take another --checkpoint")
    return logits
