"""Files in the form Magika reads, made from this project's own bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bench.paths import ROOT, shared

FOLDERS = ("bench", "docs", "examples", "fewbits", "tests")
SUFFIXES = frozenset({".css", ".html", ".j2", ".lock", ".md", ".py", ".toml", ".txt"})


def project_rows() -> np.ndarray:
    """One row per file of this project and per packed form of it: int32 [rows, 2048].

    The packed forms (gzip, bzip2, xz, zip, tar, UTF-16 text) take turns, one
    a file, so that bytes of many kinds are seen.
    """
    packings: tuple[Callable[[bytes], bytes], ...] = (_gzip, bz2.compress, lzma.compress, _zip, _tar, _utf16)
    rows = []
    for number, file in enumerate(_project_files()):
        content = file.read_bytes()
        rows += [features(content), features(packings[number % len(packings)](content))]
    return np.stack([row for row in rows if row is not None])


def features(content: bytes) -> np.ndarray | None:
    """Magika v3's input for one file: first and last 1,024 bytes, stripped, padded with 256; int32 [2048].

    None where fewer than the model's minimum of bytes remain. Sizes from the model's published configuration;
    the procedure is that of Magika's own Python package (Apache-2.0).
    """
    config = json.loads(shared("magika_v3_3_config.json").read_text())
    block, padding = config["block_size"], config["padding_token"]
    first = content[:block].lstrip()[: config["beg_size"]]
    last = content[-block:].rstrip()[-config["end_size"] :]
    if min(len(first), len(last)) < config["min_file_size_for_dl"]:
        return None
    row = np.full(config["beg_size"] + config["end_size"], padding, np.int32)
    row[: len(first)] = np.frombuffer(first, np.uint8)
    row[len(row) - len(last) :] = np.frombuffer(last, np.uint8)
    return row


def _project_files() -> Iterator[Path]:
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix in SUFFIXES and not {"cache", "results"}.intersection(file.parts):
                yield file
    yield from (file for file in sorted(ROOT.iterdir()) if file.suffix in SUFFIXES)


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def _zip(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("content"), content)
    return buffer.getvalue()


def _tar(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("content")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _utf16(content: bytes) -> bytes:
    return content.decode("utf-8").encode("utf-16")
