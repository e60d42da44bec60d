"""Calibration and scoring data as `.npz` files in `bench/cache`, arrays named like the model's inputs.

Nothing that calibrates is ever scored: CIFAR calibrates on training images; MiniLM calibrates on WikiText-2
"valid" and scores on "test" and a held-back end of "valid"; Magika calibrates on this project's own files and
scores on the labelled ones; the detector of speech calibrates on synthesized sounds and scores on a recording.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np

from bench import magika_input, models, speech
from bench.paths import cached, shared

IMAGE_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGE_STD = np.array([0.229, 0.224, 0.225], np.float32)
PARAGRAPHS = 2000
HELD_BACK = 200
SENTENCE_END = re.compile(r"(?<= [.?!]) (?=[A-Z\"'])")


def cifar_calibration(samples: int = 512) -> Path:
    """The first `samples` CIFAR-10 training images: `x` float32 [samples, 3, 32, 32], normalized."""
    path = cached(f"cifar_calibration_{samples}.npz")
    if not path.is_file():
        with np.load(shared("cifar10_jpeg_train10k.npz")) as images:
            _save(path, x=_normalized(images["x"][:samples]))
    return path


def cifar_training() -> tuple[np.ndarray, np.ndarray]:
    """All 10,000 CIFAR-10 training images: float32 [10000, 3, 32, 32], normalized, and int64 labels [10000]."""
    with np.load(shared("cifar10_jpeg_train10k.npz")) as images:
        return _normalized(images["x"]), images["labels"].astype(np.int64)


def cifar_test() -> Path:
    """The 10,000 CIFAR-10 test images: `x` float32 [10000, 3, 32, 32], normalized, and int64 `labels`."""
    path = cached("cifar_test.npz")
    if not path.is_file():
        with np.load(shared("cifar10_jpeg_test.npz")) as images:
            _save(path, x=_normalized(images["x"]), labels=images["labels"])
    return path


def large_images(source: str, samples: int, side: int = 224) -> Path:
    """CIFAR-10 images (`source` "train" or "test"), enlarged: `x` float32 [samples, 3, side, side].

    The last `samples` of the file, normalized, then bilinear. Written a few at a time, in bounded memory.
    """
    path = cached(f"images{side}_{source}_{samples}.npz")
    if not path.is_file():
        file = {"train": "cifar10_jpeg_train10k.npz", "test": "cifar10_jpeg_test.npz"}[source]
        with np.load(shared(file)) as images:
            small = _normalized(images["x"][-samples:])
        parts = np.array_split(small, -(-samples // 16))
        _save_parts(path, "x", (samples, 3, side, side), (_enlarged(part, side) for part in parts))
    return path


def minilm_calibration(samples: int, tokens: int) -> Path:
    """The first `samples` WikiText-2 "valid" paragraphs of at least `tokens` tokens, cut to that."""
    path = cached(f"minilm_calibration_{samples}x{tokens}.npz")
    if not path.is_file():
        ids, mask = _tokenized(_paragraphs("wikitext2_valid.txt")[:-HELD_BACK], tokens)
        full = np.flatnonzero(mask.all(axis=1))[:samples]
        _save(path, input_ids=ids[full], attention_mask=mask[full])
    return path


def minilm_paragraphs(tokens: int = 128) -> Path:
    """2,000 scored paragraphs: all of WikiText-2 "test", then the last of "valid"; int64 [2000, tokens].

    Cut, or padded on the right. "test" holds 1,835 paragraphs; what comes from "valid" never calibrates.
    """
    path = cached(f"minilm_paragraphs_{tokens}.npz")
    if not path.is_file():
        test = _paragraphs("wikitext2_test.txt")
        missing = PARAGRAPHS - len(test)
        if missing > HELD_BACK:
            raise ValueError(
                f"{missing} paragraphs wanted of valid, {HELD_BACK} are held back from calibration"
            )
        ids, mask = _tokenized(test + _paragraphs("wikitext2_valid.txt")[-missing:], tokens)
        _save(path, input_ids=ids, attention_mask=mask)
    return path


def minilm_batches(paragraphs: int = 512) -> Path:
    """The first WikiText-2 "valid" paragraphs of at least 128 tokens, to learn from: cut to that, and their sentences.

    Batches of about 1,024 tokens, each of about one length: a list of dicts of int64 tensors, by `torch.save`.
    """
    path = cached(f"minilm_batches_{paragraphs}.pt")
    if not path.is_file():
        import torch

        texts = _paragraphs("wikitext2_valid.txt")[:-HELD_BACK]
        _, mask = _tokenized(texts, 128)
        chosen = [text for text, row in zip(texts, mask, strict=True) if row.all()][:paragraphs]
        sentences = [one for text in chosen for one in SENTENCE_END.split(text) if len(one.split()) >= 5]
        batches = [*_batches(sentences, 64), *_batches(chosen, 128)]
        torch.save([{name: torch.from_numpy(rows) for name, rows in one.items()} for one in batches], path)
    return path


def _batches(texts: list[str], tokens: int, size: int = 1024) -> Iterator[dict[str, np.ndarray]]:
    """Rows of about one length, padded to the longest of them, of `size` tokens in all."""
    ids, mask = _tokenized(texts, tokens)
    order = mask.sum(axis=1).argsort(kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        longest = mask[order[min(end, len(order) - 1)]].sum()
        if end == len(order) or longest * (end + 1 - start) > size:
            rows = order[start:end]
            width = mask[rows].sum(axis=1).max()
            yield {"input_ids": ids[rows, :width], "attention_mask": mask[rows, :width]}
            start = end


def sentence_pairs() -> tuple[Path, np.ndarray]:
    """The STS benchmark's test pairs: first all first sentences, then all second ones, int64 [2 n, 64]; scores [n]."""
    path = cached("sentence_pairs_64.npz")
    lines = shared("sts_benchmark_test.csv").read_text(encoding="utf-8").splitlines()
    fields = [line.split("\t") for line in lines if line]
    if not path.is_file():
        ids, mask = _tokenized([row[5] for row in fields] + [row[6] for row in fields], 64)
        _save(path, input_ids=ids, attention_mask=mask)
    return path, np.array([float(row[4]) for row in fields])


def digits() -> tuple[Path, Path]:
    """256 of the digits that train, to calibrate with, and the 597 others with their labels."""
    from fewbits.demo import CALIBRATED, TRAINED
    from fewbits.demo import digits as load

    calibration, scored = cached("digits_calibration.npz"), cached("digits_scored.npz")
    if not scored.is_file():
        x, labels = load()
        _save(calibration, image=x[:CALIBRATED])
        _save(scored, image=x[TRAINED:], labels=labels[TRAINED:])
    return calibration, scored


def mnist() -> tuple[Path, Path, Path]:
    """8,000 of MNIST's test images to train on, 500 of those to calibrate with, and the other 2,000 to score on.

    `image` float32 [n, 28, 28] in 0 to 1, and int64 `labels` where they are needed.
    """
    training, calibration, scored = (
        cached(f"mnist_{part}.npz") for part in ("training", "calibration", "scored")
    )
    if not scored.is_file():
        with gzip.open(shared("mnist_t10k_images_idx3_ubyte.gz")) as file:
            images = (
                np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28).astype(np.float32) / 255
            )
        with gzip.open(shared("mnist_t10k_labels_idx1_ubyte.gz")) as file:
            labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
        _save(training, image=images[:8000], labels=labels[:8000])
        _save(calibration, image=images[:500])
        _save(scored, image=images[8000:], labels=labels[8000:])
    return training, calibration, scored


def small_images(samples: int = 200) -> tuple[Path, Path]:
    """CIFAR-10 images made larger, `image` float32 [samples, 96, 96, 3], -1 to 1: training ones and test ones."""
    paths = []
    for part, file in (("training", "cifar10_jpeg_train10k.npz"), ("test", "cifar10_jpeg_test.npz")):
        path = cached(f"images96_{part}_{samples}.npz")
        if not path.is_file():
            with np.load(shared(file)) as images:
                small = images["x"][:samples].astype(np.float32) / 127.5 - 1
            _save(path, image=small.repeat(3, axis=1).repeat(3, axis=2))
        paths.append(path)
    return paths[0], paths[1]


def magika_calibration() -> Path:
    """This project's own files, as they are and packed, in Magika's input form: `bytes` int32 [rows, 2048].

    Made anew where the project's files have changed.
    """
    rows = magika_input.project_rows()
    path = cached(f"magika_calibration_{hashlib.sha256(rows.tobytes()).hexdigest()[:12]}.npz")
    if not path.is_file():
        _save(path, bytes=rows)
    return path


def speech_calibration(seconds: int = 30) -> Path:
    """Steps of synthesized syllables and pauses: `input` float32 [steps, 576], and the rate as a scalar `sr`."""
    path = cached(f"speech_calibration_{seconds}.npz")
    if not path.is_file():
        _save(path, input=speech.steps(speech.synthesized(seconds)), sr=np.array(speech.RATE))
    return path


def speech_recording() -> Path:
    """Steps of the recorded minute, in the same form: `input` float32 [1875, 576]."""
    path = cached("speech_recording.npz")
    if not path.is_file():
        _save(path, input=speech.steps(speech.recording()), sr=np.array(speech.RATE))
    return path


def magika_labelled() -> Path:
    """The 152 labelled files as shipped: `bytes` int32 [152, 2048] and int64 `labels`."""
    return shared("magika_labelled_files.npz")


def stream(path: Path) -> Iterator[dict[str, np.ndarray]]:
    """The samples of an `.npz` one by one, each with a batch axis of 1, without reading the file whole.

    Labels are left out. The file must hold plain row-major arrays, as `numpy.savez` writes them.
    """
    with zipfile.ZipFile(path) as archive, ExitStack() as stack:
        columns = {
            member.removesuffix(".npy"): _Column(stack.enter_context(archive.open(member)))
            for member in archive.namelist()
            if member != "labels.npy"
        }
        for _ in range(next(iter(columns.values())).rows):
            yield {name: column.read_row() for name, column in columns.items()}


def count(path: Path) -> int:
    """The number of samples in an `.npz`."""
    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as member:
        return _Column(member).rows


class _Column:
    """One array of an `.npz`, read row by row."""

    def __init__(self, file: IO[bytes]) -> None:
        np.lib.format.read_magic(file)
        (self.rows, *rest), _, self._dtype = np.lib.format.read_array_header_1_0(file)
        self._shape = (1, *rest)
        self._file = file

    def read_row(self) -> np.ndarray:
        """The next row, with a first axis of 1."""
        content = self._file.read(math.prod(self._shape) * self._dtype.itemsize)
        return np.frombuffer(content, self._dtype).reshape(self._shape)


def _paragraphs(name: str) -> list[str]:
    """Lines of running text: no headings, and at least 20 words, which leaves out cells of tables."""
    lines = (line.strip() for line in shared(name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if not line.startswith("=") and len(line.split()) >= 20]


def _tokenized(texts: list[str], tokens: int) -> tuple[np.ndarray, np.ndarray]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(models.minilm_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding(length=tokens)
    rows = tokenizer.encode_batch(texts)
    ids = np.array([row.ids for row in rows], np.int64)
    return ids, np.array([row.attention_mask for row in rows], np.int64)


def _normalized(images: np.ndarray) -> np.ndarray:
    scaled = (images.astype(np.float32) / 255 - IMAGE_MEAN) / IMAGE_STD
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _enlarged(images: np.ndarray, side: int) -> np.ndarray:
    import torch

    return torch.nn.functional.interpolate(
        torch.from_numpy(images), size=(side, side), mode="bilinear"
    ).numpy()


def _save(path: Path, **arrays: np.ndarray) -> None:
    partial = path.with_name("partial-" + path.name)
    np.savez(partial, **arrays)
    os.replace(partial, path)


def _save_parts(path: Path, name: str, shape: tuple[int, ...], parts: Iterable[np.ndarray]) -> None:
    """An `.npz` of one float32 array that is never in memory as a whole."""
    partial = path.with_name("partial-" + path.name)
    with zipfile.ZipFile(partial, "w") as archive, archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part, "<f4").tobytes())
    os.replace(partial, path)
