"""PyTorch, eager and compiled: channels last unless said otherwise, autocast for bfloat16, Adam."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flax import traverse_util
from torch import nn
from torch.nn import functional

from benchmarks import operations, work
from benchmarks.case import Case
from benchmarks.ours import make_model
from benchmarks.peers.torch_convnext import ConvNeXt
from benchmarks.peers.torch_densenet import DenseNet
from benchmarks.peers.torch_networks import CNN, VGG16, ResNet, Staged
from benchmarks.peers.torch_unets import UNet, UNetResNet
from benchmarks.peers.torch_vit import ViT
from covidjax.weights import torchvision
from covidjax.weights.load import Entry, arrange, restored


def build(case: Case, variables: Any = None) -> "TorchSubject":
    """A `case.Subject`, channels last. variables: our start weights; None: fresh ones of its own."""
    return TorchSubject(case, variables, channels_last=True, compiled=False)


def build_nchw(case: Case, variables: Any = None) -> "TorchSubject":
    """The same in PyTorch's own layout."""
    return TorchSubject(case, variables, channels_last=False, compiled=False)


def build_compiled(case: Case, variables: Any = None) -> "TorchSubject":
    """The same, channels last, through `torch.compile`."""
    return TorchSubject(case, variables, channels_last=True, compiled=True)


class TorchSubject:
    """A `case.Subject`."""

    def __init__(self, case: Case, variables: Any, *, channels_last: bool, compiled: bool) -> None:
        work.check(case)
        self._case, self._on_gpu = case, torch.cuda.is_available()
        self._device = torch.device("cuda" if self._on_gpu else "cpu")
        if self._on_gpu:
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")  # TF32, as XLA has it by default
        torch.manual_seed(0)
        network = make_network(case)
        if variables is not None:
            load(case, network, variables)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(self._device, memory_format=self._layout)
        freeze(self.network, work.frozen_stages(case), train=case.mode == "train")
        images, labels = work.batch(case)
        self._images = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2)
        self._labels = torch.from_numpy(labels).to(self._device, torch.long)
        trainable = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.Adam(trainable, lr=work.LEARNING_RATE, fused=True)
        self._loss_of = torch.compile(self._loss) if compiled else self._loss
        self._logits_of = torch.compile(self._logits) if compiled else self._logits
        flops = self._count_flops()
        began = time.perf_counter()
        self.run(1)
        self._facts = {
            "device": torch.cuda.get_device_name() if self._on_gpu else "cpu",
            "platform": "gpu" if self._on_gpu else "cpu",
            "compile_seconds": time.perf_counter() - began if compiled else 0.0,
            "flops": flops,
            "temp_bytes": None,
            "total_params": sum(parameter.numel() for parameter in self.network.parameters()),
            "trainable_params": sum(parameter.numel() for parameter in trainable) if case.mode == "train" else 0,
            "optimizer_bytes": self._optimizer_bytes(),
            "threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__},
        }
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def facts(self) -> dict[str, Any]:
        """See `case.Subject`."""
        return self._facts

    def run(self, steps: int) -> None:
        """See `case.Subject`."""
        if self._case.mode == "inference":
            with torch.inference_mode():
                for _ in range(steps):
                    self._logits_of()
        else:
            for _ in range(steps):
                self.step()
        if self._on_gpu:
            torch.cuda.synchronize()

    def step(self) -> Any:
        """One training step; returns its loss, on the device."""
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss_of()
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def backward(self) -> float:
        """The loss at the present weights, its gradients left in the parameters."""
        loss = self._loss_of()
        loss.backward()
        return float(loss.detach())

    def _logits(self) -> Any:
        images = (self._images.float() * work.SCALE - work.MEAN) / work.STD
        images = images.contiguous(memory_format=self._layout)
        half = self._case.precision == "bfloat16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            return self.network(images)

    def _loss(self) -> Any:
        return functional.cross_entropy(self._logits().float(), self._labels)

    def _count_flops(self) -> float:
        """Of convolutions and matrix products of a step, as PyTorch counts them."""
        from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 - slow to import

        with FlopCounterMode(display=False) as counter:
            if self._case.mode == "inference":
                with torch.no_grad():
                    self._logits()
            else:
                self._loss().backward()
        self._optimizer.zero_grad(set_to_none=True)
        return float(counter.get_total_flops())

    def _optimizer_bytes(self) -> int:
        slots = [value for state in self._optimizer.state.values() for value in state.values()]
        return sum(slot.numel() * slot.element_size() for slot in slots if isinstance(slot, torch.Tensor))

    def peak_bytes(self) -> int | None:
        """See `case.Subject`; None on a CPU."""
        return torch.cuda.max_memory_allocated() if self._on_gpu else None

    def profile(self, steps: int, folder: str) -> None:
        """See `case.Subject`; kernels on a GPU, operators on a CPU."""
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] if self._on_gpu else []
        with torch.profiler.profile(activities=kinds) as profiler:
            self.run(steps)
        Path(folder).mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(Path(folder, "trace.json")))
        key = "self_device_time_total" if self._on_gpu else "self_cpu_time_total"
        rows = [(row.key, getattr(row, key) / 1e3 / steps, row.count // steps) for row in profiler.key_averages()]
        found = [operations.Operation(name, time, f"{count} times") for name, time, count in rows if time]
        operations.write(Path(folder), sorted(found, key=lambda operation: -operation.milliseconds))


def make_network(case: Case) -> Staged:
    """The network of a case, with fresh weights."""
    net = work.network(case.model)
    if case.model == "cnn":
        return CNN(net.channels, net.classes, work.width(case))
    if case.model == "unet":
        return UNet(net.channels, net.classes, work.width(case))
    if case.model == "vgg16":
        return VGG16(net.classes, hidden=work.VGG_HIDDEN, dropout=0.0, side=case.image_size // 32)
    if case.model in work.PORTED:
        return _ported(case, net.classes)
    if case.model == "unet_resnet34":
        return UNetResNet(work.BLOCKS["resnet34"], net.channels, net.classes)
    return ResNet(work.BLOCKS[case.model], bottleneck=case.model == "resnet50", num_classes=net.classes)


def _ported(case: Case, classes: int) -> Staged:
    if case.model in work.CONVNEXTS:
        return ConvNeXt(*work.CONVNEXTS[case.model], num_classes=classes)
    if case.model in work.VITS:
        return ViT(*work.VITS[case.model], image_size=case.image_size, num_classes=classes)
    return DenseNet(work.DENSE_LAYERS[case.model], num_classes=classes)


def freeze(network: Staged, frozen: tuple[str, ...], *, train: bool) -> None:
    """Frozen stages have no gradients, and their BatchNorm is in evaluation mode, as everything is in inference."""
    network.train(train)
    for name, _, modules in network.stages():
        if name in frozen:
            for module in modules:
                module.requires_grad_(False).eval()


def names(case: Case, network: nn.Module) -> Iterator[tuple[str, str]]:
    """(our path, the tensor's name) of every parameter and statistic, as in 'params/stem/conv1/kernel'."""
    leaves = {nn.BatchNorm2d: ("scale", "bias", "mean", "var"), nn.Module: ("kernel", "bias", "", "")}
    convolutions = _vgg_convolutions()
    for name, module in network.named_modules():
        if not hasattr(module, "weight"):
            continue
        ours = leaves[nn.BatchNorm2d if isinstance(module, nn.BatchNorm2d) else nn.Module]
        path = name.replace(".", "/")
        if case.model == "vgg16":
            kind, _, index = name.partition(".")
            # the head repeats dense, ReLU, dropout
            path = convolutions[int(index)] if kind == "features" else f"head/dense{int(index) // 3 + 1}"
        elif name == "fc":
            path = "head/dense"
        elif case.model.startswith("resnet") or name.startswith("encoder"):
            path = _resnet_path(name.removeprefix("encoder."))
        for leaf, tensor in zip(ours, ("weight", "bias", "running_mean", "running_var"), strict=True):
            if getattr(module, tensor, None) is not None:
                yield f"{'batch_stats' if tensor.startswith('running') else 'params'}/{path}/{leaf}", f"{name}.{tensor}"


def _resnet_path(name: str) -> str:
    """'layer1.0.downsample.0' is 'layer1/block1/shortcut_conv'."""
    for theirs, ours in (("downsample.0", "shortcut_conv"), ("downsample.1", "shortcut_norm"), ("bn", "norm")):
        name = name.replace(theirs, ours)
    layer, *block, module = ("stem." + name if "." not in name else name).split(".")
    return "/".join([layer, *(f"block{int(number) + 1}" for number in block), module])


def _vgg_convolutions() -> dict[int, str]:
    paths, index = {}, 0
    for block, (_, count) in enumerate(work.VGG_BLOCKS, start=1):
        for number in range(1, count + 1):
            paths[index] = f"block{block}/conv{number}"
            index += 2
        index += 1
    return paths


def load(case: Case, network: nn.Module, variables: Any) -> None:
    """Our variables into the network. Every tensor is filled."""
    targets = dict(network.named_parameters()) | dict(network.named_buffers())
    leaves = traverse_util.flatten_dict(variables, sep="/")
    if case.model in work.PORTED:
        tensors = restored(entries(case, network), leaves)
    else:
        tensors = {name: to_torch(case, path, np.array(leaves[path])) for path, name in names(case, network)}
    filled = set()
    for name, tensor in tensors.items():
        with torch.no_grad():
            targets[name].copy_(torch.from_numpy(tensor))
        filled.add(name)
    assert filled == {name for name in targets if not name.endswith("num_batches_tracked")}, "a tensor was not filled"


def entries(case: Case, network: nn.Module) -> tuple[Entry, ...]:
    """The tensors of a network of `work.PORTED` for our arrays."""
    return torchvision.entries(make_model(case), frozenset(dict(network.named_parameters())))


def to_torch(case: Case, path: str, value: np.ndarray) -> np.ndarray:
    """One of our arrays in PyTorch's layout."""
    if _flattens(case, path):
        value = value.reshape(-1, 512, value.shape[1]).swapaxes(0, 1).reshape(value.shape)
    orders = {2: (1, 0), 4: (2, 3, 0, 1) if "up_conv" in path else (3, 2, 0, 1)}
    return np.ascontiguousarray(value.transpose(orders[value.ndim]) if value.ndim in orders else value)


def from_torch(case: Case, path: str, value: np.ndarray) -> np.ndarray:
    """The inverse of `to_torch`."""
    orders = {2: (1, 0), 4: (2, 3, 0, 1) if "up_conv" in path else (2, 3, 1, 0)}
    value = value.transpose(orders[value.ndim]) if value.ndim in orders else value
    if _flattens(case, path):
        value = value.reshape(512, -1, value.shape[1]).swapaxes(0, 1).reshape(value.shape)
    return value


def _flattens(case: Case, path: str) -> bool:
    """Whether the rows of a kernel are a flattened map: features, height, width there, features last with us."""
    return case.model == "vgg16" and path == "params/head/dense1/kernel"


def loss_and_gradients(case: Case, variables: Any) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of the first step from our variables, and its gradients by our paths and in our layout."""
    subject = TorchSubject(case, variables, channels_last=True, compiled=False)
    load(case, subject.network, variables)  # building took a step
    subject.network.zero_grad(set_to_none=True)
    loss = subject.backward()
    parameters = dict(subject.network.named_parameters())
    if case.model in work.PORTED:
        found = [each for each in entries(case, subject.network) if each.path.startswith("params/")]
        return loss, {
            each.path.removeprefix("params/"): arrange(parameters[each.source].grad.numpy(), each.layout)
            for each in found
            if parameters[each.source].grad is not None
        }
    gradients = {}
    for path, name in names(case, subject.network):
        if path.startswith("params/") and parameters[name].grad is not None:
            gradients[path.removeprefix("params/")] = from_torch(case, path, parameters[name].grad.numpy())
    return loss, gradients
