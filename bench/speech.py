"""Audio for the detector of speech: the recording that is scored, and synthesized syllables to calibrate with.

There is one minute of real speech here, and all of it is scored. What calibrates is made: vowels as harmonics of a
gliding pitch, shaped by formants; hisses; pauses with noise; at levels from loud to faint.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from bench.paths import shared

RATE = 16000
STEP, CONTEXT = 512, 64  # new samples in a step, and those of the step before that it begins with
FORMANTS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))
"""Of five vowels of a male voice, Hz. Source: Peterson and Barney 1952, "Control Methods Used in a Study of Vowels"."""


def recording() -> np.ndarray:
    """The recording, float32 in [-1, 1]."""
    path: Path = shared("speech_16k.wav")
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 2**15


def synthesized(seconds: int, seed: int = 0) -> np.ndarray:
    """Syllables, hisses and pauses, float32 in [-1, 1]."""
    rng = np.random.default_rng(seed)
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < seconds * RATE:
        level = 10 ** rng.uniform(-1.7, -0.3)
        for _ in range(rng.integers(3, 12)):  # a phrase
            if rng.random() < 0.4:
                parts.append(level * _hiss(rng, rng.uniform(0.04, 0.12)))
            parts.append(level * _vowel(rng, rng.uniform(0.08, 0.3)))
        parts.append(10 ** rng.uniform(-4, -2) * rng.standard_normal(int(rng.uniform(0.1, 1.2) * RATE)))
    audio = np.concatenate(parts)[: seconds * RATE] + 10 ** rng.uniform(-4, -3) * rng.standard_normal(
        seconds * RATE
    )
    return audio.clip(-1, 1).astype(np.float32)


def steps(audio: np.ndarray) -> np.ndarray:
    """What the detector reads in each step, float32 [steps, 576]: 64 samples of the step before, and 512 new ones."""
    count = len(audio) // STEP
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), audio[: count * STEP]])
    return np.stack([padded[i * STEP : i * STEP + CONTEXT + STEP] for i in range(count)])


def _vowel(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Harmonics of a gliding pitch, louder near the formants of two vowels that it moves between."""
    count = int(seconds * RATE)
    along = np.linspace(0, 1, count)
    start = rng.uniform(85, 230)
    pitch = start * (1 + rng.uniform(-0.25, 0.25) * along)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    first, last = (np.array(FORMANTS[i]) for i in rng.integers(0, len(FORMANTS), 2))
    tract = rng.uniform(0.95, 1.25)  # shorter ones have higher formants
    sound = np.zeros(count)
    for harmonic in range(1, int(4000 / start)):
        frequency = harmonic * pitch
        gain = np.zeros(count)
        for low, high, loudness in zip(first, last, (1.0, 0.5, 0.25), strict=True):
            formant = tract * (low + (high - low) * along)
            gain += loudness / (1 + ((frequency - formant) / 80) ** 2)
        sound += gain * np.sin(harmonic * phase) / harmonic**0.5
    return _shaped(sound)


def _hiss(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Noise of high frequencies, as of s and f."""
    noise = rng.standard_normal(int(seconds * RATE))
    return 0.3 * _shaped(np.diff(noise, n=2, prepend=0, append=0)[: len(noise)])


def _shaped(sound: np.ndarray) -> np.ndarray:
    """Swelling and fading, with a peak of 1."""
    sound = sound * np.sin(np.linspace(0, np.pi, len(sound))) ** 0.5
    return sound / max(float(np.abs(sound).max()), 1e-9)
