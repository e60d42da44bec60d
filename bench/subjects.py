"""The PyTorch modules of `make bench-modules`: what makes each, what is timed of it, and what is compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bench import data, models
from bench.paths import MissingError

PROMPT, ANSWER = 32, 24  # tokens
STEPS, FEATURES = 100, 512
SIDE = 256


@dataclass(frozen=True)
class Subject:
    """A module in eval mode, by name.

    Attributes:
        make: the module in float32, the same for every call.
        run: what is timed, without gradients.
        outputs: float32 [rows, values], which are compared with those of the float module.
    """

    make: Callable[[], Any]
    run: Callable[[Any], object]
    outputs: Callable[[Any], np.ndarray]


def t5() -> Any:
    """The architecture of flan-t5-small, random weights from seed 0: 242 MB; transformers 5 ties its table."""
    config = _transformers().T5Config(
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_layers=8,
        num_decoder_layers=8,
        num_heads=6,
        vocab_size=32128,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    return _seeded(partial(_transformers().T5ForConditionalGeneration, config))


def mobilevit() -> Any:
    """The architecture of MobileViT-small for ImageNet, random weights from seed 0: 22 MB.

    Its batch norms have gains of 1 and the statistics of 8 random images. As they come from transformers values shrink
    from layer to layer until float32 has no numbers as small, which is nothing that a trained net does.
    """
    import torch

    transformers = _transformers()
    config = transformers.MobileViTConfig(num_labels=1000)
    model = _seeded(partial(transformers.MobileViTForImageClassification, config))
    norms = [one for one in model.modules() if isinstance(one, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_parameters()
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        _image(model, 8, seed=2)
    for norm in norms:
        norm.eval()
    return model


def lstm() -> Any:
    """Two layers of 512, random weights from seed 0."""
    import torch

    return _seeded(partial(torch.nn.LSTM, FEATURES, FEATURES, 2))


def gru() -> Any:
    """Two layers of 512, random weights from seed 0."""
    import torch

    return _seeded(partial(torch.nn.GRU, FEATURES, FEATURES, 2))


def minilm() -> Any:
    """The sentence encoder."""
    return models.minilm_module()


def _generate(model: Any) -> Any:
    """24 new tokens, greedy: [1, 25] with the one that the decoder starts from."""
    length = {"max_new_tokens": ANSWER, "min_new_tokens": ANSWER}
    found = model.generate(_tokens(1)[:1], do_sample=False, num_beams=1, **length)
    if found.shape != (1, ANSWER + 1):
        raise ValueError(f"{found.shape[1] - 1} new tokens, not {ANSWER}")
    return found


def _logits(model: Any) -> np.ndarray:
    """Of 24 given tokens each after 4 prompts."""
    _generate(model)
    answers = _tokens(2)[:, :ANSWER]
    return model(input_ids=_tokens(1), decoder_input_ids=answers).logits.float().flatten(0, 1).numpy()


def _tokens(seed: int) -> Any:
    import torch

    return torch.randint(2, 32000, (4, PROMPT), generator=torch.Generator().manual_seed(seed))


def _image(model: Any, images: int, seed: int = 1) -> Any:
    pixels = _normal(images, 3, SIDE, SIDE, seed=seed)
    return model(pixels.to(next(model.parameters()).dtype)).logits.float()


def _sequence(model: Any) -> Any:
    return model(_normal(STEPS, 1, FEATURES))[0]


def _embedding(model: Any, rows: int | None) -> np.ndarray:
    import torch

    found = []
    for number, feeds in enumerate(data.stream(data.minilm_paragraphs())):
        if number == rows:
            break
        found.append(model(**{name: torch.from_numpy(array) for name, array in feeds.items()}).numpy())
    return np.concatenate(found)


def _normal(*shape: int, seed: int = 1) -> Any:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _seeded(make: Callable[[], Any]) -> Any:
    import torch

    torch.manual_seed(0)
    return make().eval()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingError("transformers is not installed") from error
    return transformers


SUBJECTS: dict[str, Subject] = {
    "t5": Subject(t5, _generate, _logits),
    "mobilevit": Subject(mobilevit, lambda model: _image(model, 1), lambda model: _image(model, 8).numpy()),
    "minilm": Subject(minilm, lambda model: _embedding(model, 1), lambda model: _embedding(model, None)),
    "lstm": Subject(lstm, _sequence, lambda model: _sequence(model).flatten(0, 1).numpy()),
    "gru": Subject(gru, _sequence, lambda model: _sequence(model).flatten(0, 1).numpy()),
}
