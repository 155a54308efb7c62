"""A trained network for other programs: one file that jax runs without covidjax, or tensors by torchvision's names."""

import datetime
import inspect
import io
import json
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax import export
from safetensors.numpy import save

from covidjax import models
from covidjax.errors import UserError, some_of
from covidjax.files import write_bytes
from covidjax.models.layers import Staged
from covidjax.weights import exported, inputs, torchvision
from covidjax.weights.foreign import COUNTERS
from covidjax.weights.load import restored
from covidjax.weights.workdir import Trained

PLATFORMS = ("cpu", "cuda", "tpu")
PROMISE = datetime.timedelta(days=180)  # jax runs what an earlier one exported for six months (JAX docs, "export")
ENDINGS = (".zip", ".safetensors")


def write(trained: Trained, output: Path) -> list[str]:
    """Writes what the ending of `output` says, and returns notes. Raises UserError for another ending, and as they."""
    if output.suffix not in ENDINGS:
        raise UserError(f"--output is {output}: allowed is a name that ends in {' or '.join(ENDINGS)}")
    return (write_program if output.suffix == ".zip" else write_tensors)(trained, output)


def write_program(trained: Trained, output: Path) -> list[str]:
    """Writes a zip file: the compiled program, its weights, what it takes and gives, and the function that loads it.

    The program takes images [n, height, width, channels] uint8, for any n, normalises them as the weights need it, and
    gives probabilities [n, classes] or class ids [n, height, width] uint8. It has no native operation.
    Returns a note on its date, and on how far it is from the network here. Raises UserError for double precision, and
    for a network whose shapes cannot be told for any n.
    """
    config, task = trained.config, trained.task
    if config.precision == "float64":
        raise UserError("config.precision is float64, for tests of equality: other programs run jax without it")
    model = models.build(config.model, task.num_outputs(trained.classes), config.precision)
    leaves, structure = jax.tree.flatten(trained.variables)
    run = _program(trained, model)
    size, channels = config.dataset.image_size, config.dataset.channels
    (count,) = export.symbolic_shape("n")
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    images = jax.ShapeDtypeStruct((count, size, size, channels), np.uint8)
    try:
        of_leaves = jax.jit(lambda leaves, images: run(jax.tree.unflatten(structure, leaves), images))
        program = export.export(of_leaves, platforms=PLATFORMS)(shapes, images)
    except jax.errors.JAXTypeError as error:  # inconclusive comparisons of the symbol n among them
        raise UserError(f"{config.model.name} cannot be exported for any number of images: {error}") from error
    today = datetime.date.today()
    about = {
        "model": config.model.name,
        "step": trained.step,
        "weights_sha256": trained.digest,
        "classes": list(trained.classes),
        "images": [size, size, channels],
        "answers": "probabilities" if task.labels == "images" else "class ids",
        "crop": config.dataset.crop,
        "preprocessing": str(trained.preprocessing),
        "precision": config.precision,
        "platforms": list(PLATFORMS),
        "versions": {name: metadata.version(name) for name in ("covidjax", "jax", "jaxlib", "numpy")},
        "exported": today.isoformat(),
        "until": (today + PROMISE).isoformat(),
        "use": "research use only",
    }
    content, arrays = io.BytesIO(), io.BytesIO()
    np.savez(arrays, *map(np.asarray, leaves))
    with zipfile.ZipFile(content, "w") as file:  # not compressed: weights hardly shrink
        file.writestr("about.json", json.dumps(about, indent=1))
        file.writestr("load.py", inspect.getsource(exported))
        file.writestr("program", bytes(program.serialize()))
        file.writestr("weights.npz", arrays.getvalue())
    write_bytes(output, content.getvalue())
    return [
        f"takes {about['images']} uint8, as launch/predict.py makes them of files, and gives {about['answers']}",
        f"jax {about['versions']['jax']} runs it always, later ones until {about['until']} at least",
        _checked(trained, output),
    ]


def _program(trained: Trained, model: Staged) -> Callable[[Any, Any], jax.Array]:
    """(variables, images [n, height, width, channels] uint8) -> what the task responds."""

    def run(variables: Any, images: Any) -> jax.Array:
        logits: Any = model.apply(variables, trained.preprocessing(images.astype(model.numerics.param_dtype)))
        return trained.task.respond(logits, trained.config.loss)

    return run


def _checked(trained: Trained, output: Path) -> str:
    """How far the answers of the file are from those of the network here, on images of noise."""
    predict, about = exported.load(output)
    images = np.random.default_rng(0).integers(0, 256, (3, *about["images"]), np.uint8)
    ours = np.asarray(jax.jit(_program(trained, trained.model))(trained.variables, images), np.float64)
    theirs = predict(images)
    if about["answers"] == "probabilities":
        return f"checked: its probabilities are within {np.abs(ours - theirs).max():.1e} of those of the workdir"
    return f"checked: {np.mean(ours == theirs):.2%} of its pixels have the class that the workdir's network gives"


def write_tensors(trained: Trained, output: Path) -> list[str]:
    """Writes safetensors by torchvision's names, for `load_state_dict` of the network of that name there.

    Every number is bit by bit the one here. The counters of steps, which nothing reads, are zero.
    Returns notes on what is left out and what the first convolution takes. Raises UserError for a network that has no
    torchvision names, and for a folded stem, whose kernel does more than PyTorch's.
    """
    if trained.preprocessing.inside:
        raise UserError(
            "the first convolution holds a part of the normalisation, which PyTorch's does not: train with "
            "config.model.stem='replicate'"
        )
    leaves = traverse_util.flatten_dict(trained.variables, sep="/")
    known = torchvision.entries(trained.model, variables=trained.variables)
    entries = [entry for entry in known if entry.path in leaves]
    tensors = restored(entries, leaves)
    norms = [name.removesuffix("running_mean") for name in tensors if name.endswith("running_mean")]
    tensors |= {f"{name}{COUNTERS}": np.zeros((), np.int64) for name in norms}
    header = {
        "model": trained.config.model.name,
        "classes": json.dumps(trained.classes),
        "preprocessing": inputs.encode(trained.preprocessing),
        "weights_sha256": trained.digest,
    }
    write_bytes(output, save(tensors, header))
    channels = len(trained.preprocessing.mean)
    notes = [f"{len(tensors)} tensors by torchvision's names; preprocessing: {trained.preprocessing}"]
    if channels != 3:
        notes.append(f"the first convolution takes {channels} channels, and torchvision's 3: make it anew there")
    if missing := sorted(leaves.keys() - {entry.path for entry in entries}):
        notes.append(f"torchvision has no names for {len(missing)} arrays, which were left out: {some_of(missing)}")
    return notes
