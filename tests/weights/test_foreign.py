"""A learnt tensor that nothing takes, inside a stage that is used, shows another network, whatever its rank."""

from pathlib import Path

import numpy as np
import pytest

from covidjax.weights.start import initial_variables
from tests.commands import user_error
from tests.support import make_model, small_config
from tests.weights.made_files import invented, write

pytestmark = pytest.mark.usefixtures("few_blocks")
FAMILIES = {"torchvision": "resnet18", "keras": "resnet50", "numbered": "resnet50"}
# Per family: tensors that make the file one of another network.
GATES = {
    "torchvision": (
        {"layer1.0.se.fc.0.weight": (4, 64), "layer1.0.se.fc.2.weight": (64, 4)},
        {"layer4.0.gamma": (512,)},
    ),
    "keras": (
        {"conv2_block1_se_reduce/0": (256, 16), "conv2_block1_se_expand/0": (16, 256)},
        {"conv5_block1_scale/0": (2048,)},
    ),
    "numbered": (
        {"layers/dense/vars/0": (32, 2), "layers/dense_1/vars/0": (2, 32), "layers/dense_2/vars/0": (256, 3)},
        {"layers/batch_normalization_99/vars/0": (64,)},
    ),
}
BESIDE = {
    "torchvision": {
        "bn1.num_batches_tracked": (),
        "aux_classifier.0.weight": (8, 64, 3, 3),
        "projector.0.weight": (8, 512),
        "logit_scale": (),
    },
    "keras": {"rescaling/0": (3,), "projection/0": (2048, 128)},
    "numbered": {
        "layers/dense/vars/0": (2048, 128),
        "layers/dense_1/vars/0": (128, 3),
        "layers/normalization/vars/0": (3,),
    },
}


def tensors_of(family: str) -> dict[str, np.ndarray]:
    config = small_config(FAMILIES[family], model__arrangement="torchvision" if family == "torchvision" else "keras")
    made = invented(make_model(config), family)
    return {
        name: tensor for name, tensor in made.items() if not name.startswith(("fc.", "predictions", "layers/dense"))
    }


def start(path: Path, family: str, extra: dict[str, tuple[int, ...]]) -> tuple[str, ...]:
    config = small_config(FAMILIES[family], model__arrangement="torchvision" if family == "torchvision" else "keras")
    made = {name: np.full(shape, 0.5, np.float32) for name, shape in extra.items()}
    config.pretrained = str(write(path, tensors_of(family) | made))
    return initial_variables(config, make_model(config), (32, 32, 3)).notes


def path_of(folder: Path, family: str) -> Path:
    return folder / {"torchvision": "w.safetensors", "keras": "w.h5", "numbered": "w.weights.h5"}[family]


@pytest.mark.parametrize(("family", "which"), [(family, which) for family in FAMILIES for which in (0, 1)])
def test_gates_and_scales_inside_a_used_stage_are_refused_by_name(tmp_path: Path, family: str, which: int) -> None:
    extra = GATES[family][which]
    message = user_error(start, path_of(tmp_path, family), family, extra)
    assert "the network has no place for" in message
    assert all(name in message for name in extra if "dense_2" not in name)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_stands_beside_the_network_is_left_and_said(tmp_path: Path, family: str) -> None:
    note = start(path_of(tmp_path, family), family, BESIDE[family])[0]
    assert all(name in note for name in BESIDE[family] if "num_batches" not in name)
