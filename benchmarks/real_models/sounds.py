"""Networks for sounds: voice detectors that carry a state, and a network that hears notes."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import onnxruntime

from benchmarks.real_models.data import chord, speech
from benchmarks.real_models.real_model import SETS, Feeds, RealModel, Run, joined
from benchmarks.real_models.task_error import Array, Measure, decision_error, mask_error
from benchmarks.real_models.wheels import Wheel

SILERO = Wheel("silero_vad", "6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8")
BASIC_PITCH = Wheel("basic_pitch", "0.4.0", "738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0")

_SPEECH_RATE, _CHUNK, _CONTEXT = 16_000, 512, 64
_SPEECH_THRESHOLD = 0.5
_WINDOWS = 64
_MUSIC_RATE, _MUSIC_SAMPLES = 22_050, 43_844
_NOTE_THRESHOLD, _ONSET_THRESHOLD = 0.3, 0.5
_LOWEST_PITCH = 21
"""MIDI number of the first of the 88 keys."""
_ONSETS, _NOTES = "StatefulPartitionedCall:2", "StatefulPartitionedCall:1"
_PITCHES = (
    (60, 64, 67), (57, 60, 64, 69), (48, 55, 63), (62, 65, 69, 74), (52, 59, 68), (72, 67, 64, 60), (45, 57, 61),
    (50, 62, 66, 69), (55, 59, 62, 65), (64, 71, 76), (41, 53, 57, 60), (58, 62, 65), (47, 54, 63, 66), (69, 73, 76),
    (43, 55, 58, 62), (61, 64, 68, 71), (53, 60, 65), (66, 70, 73, 78), (49, 56, 64), (59, 63, 66), (40, 52, 59, 68),
    (51, 58, 67, 70), (63, 67, 70), (46, 58, 62, 65),
)  # fmt: skip
"""Notes of twelve sounds for `stillhouse accelerate`, then of twelve held-out sounds."""


def _recordings(held_out: bool) -> Iterator[Array]:
    """Yield sounds: spoken sentences, and a chord, in which nobody speaks. Held out: other sentences and voices."""
    for sentence, voice in ((6, "en-us"), (7, "en"), (4, "de")) if held_out else ((0, "en"), (1, "en-us"), (2, "en")):
        yield speech(sentence, voice, _SPEECH_RATE)
    yield 0.3 * chord((57, 61, 64) if held_out else (60, 64, 67), 2 * _SPEECH_RATE, _SPEECH_RATE, int(held_out))


def _windows(sound: Array) -> Array:
    """Return a sound's windows (windows, 576): 512 new samples after the last 64 of the window before."""
    count = len(sound) // _CHUNK
    padded = np.concatenate([np.zeros(_CONTEXT, np.float32), sound[: count * _CHUNK]])
    starts = _CHUNK * np.arange(count)[:, None]
    return np.asarray(padded[starts + np.arange(_CONTEXT + _CHUNK)], np.float32)


def _vad_feeds(window: Array, state: Array) -> Feeds:
    return {"input": window[None], "state": state, "sr": np.array(_SPEECH_RATE, np.int64)}


def _steps(run: Run, sound: Array) -> Iterator[tuple[Feeds, float]]:
    """Yield the inputs of each window and its probability of speech; the state goes from window to window."""
    state = np.zeros((2, 1, 128), np.float32)
    for window in _windows(sound):
        feeds = _vad_feeds(window, state)
        outputs = run(feeds)
        yield feeds, float(outputs["output"].item())
        state = outputs["stateN"]


def _plain_run(model: RealModel) -> Run:
    session = onnxruntime.InferenceSession(str(model.graph))
    names = [value.name for value in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(None, feeds), strict=True))


@cache
def _vad_inputs() -> list[Feeds]:
    """Return windows of speech and of silence, with the states that the original network had there."""
    run = _plain_run(SILERO_VAD)
    steps = [feeds for sound in _recordings(False) for feeds, _ in _steps(run, sound)]
    return [steps[index] for index in np.linspace(4, len(steps) - 4, SETS).round().astype(int)]


def _vad_probabilities(run: Run) -> list[Array]:
    return [np.array([probability for _, probability in _steps(run, sound)]) for sound in _recordings(True)]


def _speech_findings(probabilities: list[Array]) -> str:
    flat = np.concatenate(probabilities)
    share = float((flat >= _SPEECH_THRESHOLD).mean())
    return f"speech in {share:.0%} of {len(flat)} windows, up to {flat.max():.2f}" if 0.2 < share < 0.9 else ""


def _vad_error(reference: list[Array], found: list[Array]) -> list[Measure]:
    return decision_error(np.concatenate(reference), np.concatenate(found), _SPEECH_THRESHOLD)


def _sequence_feeds(windows: Array, state: tuple[Array, Array] | None = None) -> Feeds:
    zero = np.zeros((1, 1, 128), np.float32)
    hidden, cell = state or (zero, zero)
    return {"input": np.ascontiguousarray(windows), "h": hidden, "c": cell}


def _sequence_inputs() -> list[Feeds]:
    windows = np.concatenate([_windows(sound) for sound in _recordings(False)])
    starts = np.linspace(0, len(windows) - _WINDOWS, SETS).round().astype(int)
    return [_sequence_feeds(windows[start : start + _WINDOWS]) for start in starts]


def _sequence_probabilities(run: Run) -> list[Array]:
    """Return the probabilities of each sound, in pieces of 64 windows, between which the state is kept."""
    results = []
    for sound in _recordings(True):
        windows, state, found = _windows(sound), None, []
        for start in range(0, len(windows) - _WINDOWS + 1, _WINDOWS):
            outputs = run(_sequence_feeds(windows[start : start + _WINDOWS], state))
            state = outputs["hn"], outputs["cn"]
            found.append(outputs["speech_probs"].reshape(-1))
        results.append(np.concatenate([np.zeros(0), *found]))
    return results


def _music_feeds(index: int) -> Feeds:
    sound = chord(_PITCHES[index], _MUSIC_SAMPLES, _MUSIC_RATE, index)
    return {"serving_default_input_2:0": sound[None, :, None]}


def _note_masks(run: Run) -> list[Array]:
    """Return where notes sound, and where they begin, in each held-out sound."""
    masks = []
    for index in range(SETS, len(_PITCHES)):
        outputs = run(_music_feeds(index))
        masks.append(np.stack([outputs[_NOTES] > _NOTE_THRESHOLD, outputs[_ONSETS] > _ONSET_THRESHOLD]))
    return masks


def _note_findings(masks: list[Array]) -> str:
    played = sum(map(len, _PITCHES[SETS:]))
    heard = sum(
        int(mask[0, 0, :, pitch - _LOWEST_PITCH].any())
        for mask, pitches in zip(masks, _PITCHES[SETS:], strict=True)
        for pitch in pitches
    )
    return f"hears {heard} of {played} notes" if heard > 0.8 * played else ""


SILERO_VAD = RealModel(
    "silero-vad",
    SILERO,
    "silero_vad/data/silero_vad.onnx",
    "voice detector with a state, inside `If`",
    inputs=_vad_inputs,
    perform=_vad_probabilities,
    compare=_vad_error,
    findings=_speech_findings,
    other_inputs=lambda: {"2 sounds": joined(_vad_inputs()[:2], {"input": 0, "state": 1})},
)
SOUNDS = (
    SILERO_VAD,
    RealModel(
        "silero-lstm",
        SILERO,
        "silero_vad/data/silero_vad_16k_sequence.onnx",
        "LSTM over the windows of a sound",
        inputs=_sequence_inputs,
        perform=_sequence_probabilities,
        compare=_vad_error,
        findings=_speech_findings,
        other_inputs=lambda: {
            f"{count} windows": _sequence_feeds(_windows(next(_recordings(False)))[:count]) for count in (1, 40)
        },
    ),
    RealModel(
        "basic-pitch",
        BASIC_PITCH,
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        "notes of a sound",
        inputs=lambda: [_music_feeds(index) for index in range(SETS)],
        perform=_note_masks,
        compare=mask_error,
        findings=_note_findings,
        other_inputs=lambda: {"2 sounds": joined([_music_feeds(index) for index in (0, 1)])},
    ),
)
"""Networks for sounds."""
