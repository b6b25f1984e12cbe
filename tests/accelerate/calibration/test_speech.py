"""Sound for calibration has the pitch, formants and pauses of speech, and stays within its range."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.accelerate.calibration.speech import make_speech


@given(length=st.integers(2, 20_000), rate=st.sampled_from([8000, 16_000, 48_000]), seed=st.integers(0, 99))
def test_sounds_have_their_length_and_range(length: int, rate: int, seed: int) -> None:
    sound = make_speech(np.random.default_rng(seed), length, rate)
    assert sound.shape == (length,) and 0.29 < np.abs(sound).max() < 0.91
    assert np.array_equal(sound, make_speech(np.random.default_rng(seed), length, rate))


def test_the_power_lies_where_voices_have_it() -> None:
    rate = 16_000
    sounds = np.stack([make_speech(np.random.default_rng(seed), rate, rate) for seed in range(20)])
    power = np.square(np.abs(np.fft.rfft(sounds))).mean(0)  # one bin for each Hz
    # Nothing is below the lowest pitch of 72 Hz, save the background and edges; formants lie below 3100 Hz.
    assert power[:60].sum() < 0.01 * power.sum()
    assert power[60:3200].sum() > 0.8 * power.sum()


def test_a_voice_is_periodic_and_pauses_are_quiet() -> None:
    rate = 16_000
    vowel = make_speech(np.random.default_rng(3), rate // 20, rate)  # the first sound lasts 80 ms or more
    correlation = np.correlate(vowel, vowel, "full")[len(vowel) - 1 :] / np.square(vowel).sum()
    assert correlation[rate // 270 : rate // 70].max() > 0.5  # noise has 0.035, one deviation for 800 samples
    frames = np.stack([make_speech(np.random.default_rng(seed), 2 * rate, rate) for seed in range(4)]).reshape(-1, 320)
    loudness = np.sqrt(np.square(frames).mean(1))
    assert loudness.min() < 0.02 * loudness.max()
