"""Sound like speech: vowels with pitch and formants, noise as of consonants, and pauses; made up, without words."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

_FORMANTS = (
    (270, 2290, 3010),
    (530, 1840, 2480),
    (660, 1720, 2410),
    (730, 1090, 2440),
    (300, 870, 2240),
)
"""Frequencies in Hz of the first three formants of the vowels i, e, ae, a and u of men (Peterson and Barney 1952)."""
_FORMANT_GAINS, _BANDWIDTH, _MAX_FREQUENCY = (1.0, 0.5, 0.25), 90.0, 4000.0
_BACKGROUND = 0.002
"""Standard deviation of the noise everywhere, relative to the peak."""


def make_speech(rng: Generator, length: int, rate: int = 16_000) -> NDArray[np.float64]:
    """Return sound like speech, float64 [length], whose peak is 0.3 to 0.9; the first sound is a vowel.

    Args:
        rng: source of pitch, vowels, durations and noise.
        length: number of samples.
        rate: samples per second.
    """
    sounds, size = [_vowel(rng, rate)], 0
    while (size := size + len(sounds[-1])) < length:
        kind = rng.choice(["vowel", "noise", "pause"], p=[0.6, 0.25, 0.15])
        sounds.append(_vowel(rng, rate) if kind == "vowel" else _noise(rng, rate, loud=kind == "noise"))
    sound = np.concatenate(sounds)[:length]
    sound = sound / max(float(np.abs(sound).max(initial=0)), 1e-6) + _BACKGROUND * rng.standard_normal(length)
    return np.asarray(sound * rng.uniform(0.3, 0.9) / max(float(np.abs(sound).max(initial=0)), 1e-6))


def _vowel(rng: Generator, rate: int) -> NDArray[np.float64]:
    """Return a vowel of 80 to 250 ms: harmonics of a gliding pitch, each as loud as the formants near its frequency."""
    size = int(rate * rng.uniform(0.08, 0.25))
    pitch = rng.uniform(90, 220) * np.linspace(1, rng.uniform(0.8, 1.2), size)
    phase = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.cumsum(pitch) / rate
    formants = np.array(_FORMANTS[rng.integers(len(_FORMANTS))])
    sound = np.zeros(size)
    for harmonic in range(1, int(min(rate / 2, _MAX_FREQUENCY) / pitch.max()) + 1):
        distances = (harmonic * pitch.mean() - formants) / _BANDWIDTH
        sound += (0.02 + np.sum(np.array(_FORMANT_GAINS) / (1 + distances**2))) * np.sin(harmonic * phase)
    edges = np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1)) / (0.01 * rate)
    return np.asarray(sound * np.minimum(1, edges) / np.abs(sound).max())


def _noise(rng: Generator, rate: int, *, loud: bool) -> NDArray[np.float64]:
    """Return 30 to 120 ms of fading noise whose high frequencies prevail, as of an s; zeros unless `loud`."""
    size = int(rate * rng.uniform(0.03, 0.12))
    noise = np.diff(rng.standard_normal(size + 1)) * np.exp(-3 * np.arange(size) / size)
    return np.asarray(0.2 * noise * loud)
