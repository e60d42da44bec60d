"""Hugging Face directories: plain ones of named tensors, and tiny models of transformers' own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor


def plain_tensors(dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """A table, three matrices, a convolution, norms, biases and a buffer, by the names that models give them."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=draw) * 0.05).to(dtype)

    return {
        "model.embed_tokens.weight": normal(50, 64),
        "model.layers.0.up.weight": normal(96, 64),
        "model.layers.0.up.bias": normal(96),
        "model.layers.0.down.weight": normal(64, 96),
        "model.layers.0.norm.weight": normal(64),
        "model.conv.weight": normal(8, 4, 3, 3),
        "head.weight": normal(40, 64),
        "model.steps": torch.arange(5),
    }


def plain(
    folder: Path, tensors: Mapping[str, Tensor] | None = None, shards: int = 1, **config: object
) -> Path:
    """A directory of tensors whose class transformers does not know, in one file or in several."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = plain_tensors() if tensors is None else tensors
    (folder / "config.json").write_text(json.dumps({"architectures": ["NotThere"], **config}))
    (folder / "tokenizer.json").write_text('{"a": 1}')
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
        return folder
    names = sorted(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        held = {name: tensors[name] for name in names[number::shards]}
        save_file(held, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(held, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def read_all(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a directory, by the safetensors library."""
    from safetensors.torch import load_file

    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def edit(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; None takes one out."""
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


MODELS = ("llama", "t5", "gpt2", "bert", "vit", "mixtral")


def saved(
    name: str,
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
    without: str | None = None,
    more: Mapping[str, Tensor] | None = None,
    shard: str = "5GB",
    **config: Any,
) -> tuple[Path, Any]:
    """A tiny model of transformers, drawn at random and saved, and the model; skipped without transformers."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    heads = small | {"num_key_value_heads": 2, "vocab_size": 100}
    t = transformers
    make: dict[str, Callable[[], Any]] = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**heads | {"tie_word_embeddings": True} | config)),
        "t5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(vocab_size=100, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
        ),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=100, n_embd=64, n_layer=2, n_head=4)),
        "bert": lambda: t.BertForSequenceClassification(t.BertConfig(vocab_size=100, **small)),
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(image_size=32, patch_size=8, **small)),
        "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(num_local_experts=4, **heads)),
    }
    model = make[name]().to(dtype).eval()
    model.save_pretrained(folder, max_shard_size=shard)
    if without is not None or more is not None:
        held = {key: value for key, value in read_all(folder).items() if key != without} | dict(more or {})
        save_file(held, folder / "model.safetensors", {"format": "pt"})
    return folder, model


def example(name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Inputs that a tiny model takes."""
    if name == "vit":
        return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32).to(dtype)}
    ids = torch.arange(24).reshape(2, 12)
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if name == "t5" else {})
