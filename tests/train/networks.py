"""The layers of each network, written down by hand: what the programs of a step are counted against."""

from collections.abc import Iterator
from typing import NamedTuple

IMAGES = "images"
RESNETS = {
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
}

DENSENET = (2, 1, 1, 2)  # layers of each block, in place of those of the 121


class Layer(NamedTuple):
    """A layer: the path of its parameters (or the name of a sum), what it is, and the layers that it reads.

    kind: 'product' of a kernel with a map (convolution or dense), 'norm' (BatchNorm), or 'sum'.
    """

    path: str
    kind: str
    sources: tuple[str, ...]


def layers(model: str, num_blocks: int = 4) -> list[Layer]:
    """Every layer with parameters and every sum of two maps, input first. num_blocks: of the cnn."""
    if model == "cnn":
        return list(_cnn(num_blocks))
    if model == "vgg16":
        return list(_vgg16())
    if model == "densenet121":
        return list(_densenet())
    if model == "unet":
        return list(_unet())
    if model.startswith("unet_"):
        return list(_unet_resnet(model.removeprefix("unet_")))
    return [*_encoder(model), Layer("head/dense", "product", (_end(model, 4),))]


def products(model: str, trained: set[str], num_blocks: int = 4) -> int:
    """Products of the step that trains these parameters.

    One a layer forward, one for the gradient of its kernel if that trains, and one for the gradient of what it reads
    if that depends on a parameter that trains.
    """
    living = live(layers(model, num_blocks), trained)
    return sum(
        1 + (f"{layer.path}/kernel" in trained) + any(source in living for source in layer.sources)
        for layer in layers(model, num_blocks)
        if layer.kind == "product"
    )


def live(network: list[Layer], trained: set[str]) -> set[str]:
    """The layers whose output depends on a parameter that trains."""
    found: set[str] = set()
    for layer in network:
        own = any(path.rpartition("/")[0] == layer.path for path in trained)
        if own or any(source in found for source in layer.sources):
            found.add(layer.path)
    return found


def _cnn(num_blocks: int) -> Iterator[Layer]:
    before = IMAGES
    for number in range(1, num_blocks + 1):
        yield Layer(f"block{number}/conv", "product", (before,))
        yield Layer(f"block{number}/norm", "norm", (f"block{number}/conv",))
        before = f"block{number}/norm"
    yield Layer("head/dense", "product", (before,))


def _vgg16() -> Iterator[Layer]:
    before = IMAGES
    for block, count in enumerate((2, 2, 3, 3, 3), start=1):
        for number in range(1, count + 1):
            yield Layer(f"block{block}/conv{number}", "product", (before,))
            before = f"block{block}/conv{number}"
    for number in (1, 2, 3):
        yield Layer(f"head/dense{number}", "product", (before,))
        before = f"head/dense{number}"


def _densenet() -> Iterator[Layer]:
    """Each layer of a block reads what all before it gave; BatchNorm precedes the convolutions that it belongs to."""
    yield Layer("stem/conv1", "product", (IMAGES,))
    yield Layer("stem/norm1", "norm", ("stem/conv1",))
    maps: tuple[str, ...] = ("stem/norm1",)
    for block, count in enumerate(DENSENET, start=1):
        for number in range(1, count + 1):
            layer = f"block{block}/layer{number}"
            yield Layer(f"{layer}/norm1", "norm", maps)
            yield Layer(f"{layer}/conv1", "product", (f"{layer}/norm1",))
            yield Layer(f"{layer}/norm2", "norm", (f"{layer}/conv1",))
            yield Layer(f"{layer}/conv2", "product", (f"{layer}/norm2",))
            maps = (*maps, f"{layer}/conv2")
        if block < len(DENSENET):
            yield Layer(f"block{block}/transition_norm", "norm", maps)
            yield Layer(f"block{block}/transition_conv", "product", (f"block{block}/transition_norm",))
            maps = (f"block{block}/transition_conv",)
    yield Layer("block4/norm", "norm", maps)
    yield Layer("head/dense", "product", ("block4/norm",))


def _encoder(name: str) -> Iterator[Layer]:
    """Stem and layers of a ResNet; the widths change in the first block of each layer, but not in ResNet-18's first."""
    bottleneck, num_blocks = RESNETS[name]
    yield Layer("stem/conv1", "product", (IMAGES,))
    yield Layer("stem/norm1", "norm", ("stem/conv1",))
    before = "stem/norm1"
    for number, count in enumerate(num_blocks, start=1):
        for position in range(1, count + 1):
            block, read = f"layer{number}/block{position}", before
            for index in range(1, 4 if bottleneck else 3):
                yield Layer(f"{block}/conv{index}", "product", (read,))
                yield Layer(f"{block}/norm{index}", "norm", (f"{block}/conv{index}",))
                read = f"{block}/norm{index}"
            beside = before
            if position == 1 and (bottleneck or number > 1):
                yield Layer(f"{block}/shortcut_conv", "product", (before,))
                yield Layer(f"{block}/shortcut_norm", "norm", (f"{block}/shortcut_conv",))
                beside = f"{block}/shortcut_norm"
            yield Layer(f"{block}/sum", "sum", (read, beside))
            before = f"{block}/sum"


def _end(name: str, number: int) -> str:
    return f"layer{number}/block{RESNETS[name][1][number - 1]}/sum"


def _two(stage: str, sources: tuple[str, ...]) -> Iterator[Layer]:
    """Two convolutions, each with BatchNorm."""
    for number in (1, 2):
        yield Layer(f"{stage}/conv{number}", "product", sources)
        yield Layer(f"{stage}/norm{number}", "norm", (f"{stage}/conv{number}",))
        sources = (f"{stage}/norm{number}",)


def _up(stage: str, before: str, skip: str) -> Iterator[Layer]:
    """A transposed convolution of the map before, then two convolutions of it beside the skip."""
    yield Layer(f"{stage}/up_conv", "product", (before,))
    yield from _two(stage, (skip, f"{stage}/up_conv"))


def _unet() -> Iterator[Layer]:
    before = IMAGES
    for level in (1, 2, 3, 4):
        yield from _two(f"down{level}", (before,))
        before = f"down{level}/norm2"
    yield from _two("middle", (before,))
    before = "middle/norm2"
    for level in (1, 2, 3, 4):
        yield from _up(f"up{level}", before, f"down{5 - level}/norm2")
        before = f"up{level}/norm2"
    yield Layer("head/conv", "product", (before,))


def _unet_resnet(encoder: str) -> Iterator[Layer]:
    yield from _encoder(encoder)
    before = _end(encoder, 4)
    skips = (_end(encoder, 3), _end(encoder, 2), _end(encoder, 1), "stem/norm1", IMAGES)
    for number, skip in enumerate(skips, start=1):
        yield from _up(f"decoder/up{number}", before, skip)
        before = f"decoder/up{number}/norm2"
    yield Layer("head/conv", "product", (before,))
