import json
import warnings
from pathlib import Path

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import PipelineError
from stillhouse.pipelines.families.stable_diffusion import STABLE_DIFFUSION
from stillhouse.pipelines.tokenizers import PromptTruncated, Tokenizer, open_tokenizer
from tests.checkpoints import write_tokenizer

TEXTS = [
    "",
    " ",
    "a red circle",
    "  A   RED\tcircle\n left of  a blue-ish square!!! ",
    "it's 12.5% of 3 o'clock, isn't it?",
    "naïve café Ünïcödé ﬁ ½",
    "e\u0301 decomposed",
    "红色的圆 🔴 на синем фоне",
    "\u200bzero\u00a0width\ufeff",
    "<|startoftext|> a red <|endoftext|> circle",
    "! ! !! a!b",
    "[[(({{&amp;<b>}}))]] _under_score_",
]


@pytest.fixture(scope="module", params=["<|endoftext|>", "!"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokenizers")
    write_tokenizer(root / "old", padding=request.param)
    transformers.CLIPTokenizer.from_pretrained(root / "old").save_pretrained(root / "saved")
    return root / "saved"


@pytest.fixture(scope="module")
def pair(directory: Path) -> tuple[Tokenizer, transformers.CLIPTokenizer]:
    return open_tokenizer(directory), transformers.CLIPTokenizer.from_pretrained(directory)


def theirs(tokenizer: transformers.CLIPTokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids
    return ids


@pytest.mark.parametrize("text", [*TEXTS, "a red circle " * 60, "x" * 500, "é🔴" * 60])
def test_the_same_tokens_as_transformers(pair: tuple[Tokenizer, transformers.CLIPTokenizer], text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptTruncated)
        assert pair[0](text).tolist() == theirs(pair[1], text)


@given(text=st.text(max_size=120))
def test_any_text(pair: tuple[Tokenizer, transformers.CLIPTokenizer], text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptTruncated)
        ids = pair[0](text)
    assert ids.dtype == "int64" and ids.shape == (77,)
    assert ids.tolist() == theirs(pair[1], text)


@pytest.mark.parametrize("length", [4, 8, 77, 200])
@pytest.mark.parametrize("text", ["", "a red circle", "red " * 90])
def test_other_lengths_and_masks(pair: tuple[Tokenizer, transformers.CLIPTokenizer], text: str, length: int) -> None:
    """As transformers pads and cuts, and never more ids than the text encoder reads."""
    most = min(length, 77)
    expected = pair[1](text, padding="max_length", max_length=most, truncation=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptTruncated)
        tokens = pair[0].encode(text, length)
    assert tokens.ids.tolist() == expected.input_ids and tokens.mask.tolist() == expected.attention_mask
    assert tokens.mask.dtype == "int64" and len(tokens.mask) == most


@pytest.mark.parametrize(("absent", "ids"), [({"bos_token"}, [3, 5, 1]), ({"bos_token", "eos_token"}, [3, 5])])
@pytest.mark.parametrize("is_null", [True, False])
def test_texts_may_have_no_start_and_no_end_token(
    tmp_path: Path, absent: set[str], ids: list[int], is_null: bool
) -> None:
    words = {word: number for number, word in enumerate(("<pad>", "</s>", "<unk>", "a", "red", "circle"))}
    vocabulary = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    vocabulary.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    vocabulary.save(str(tmp_path / "tokenizer.json"))
    settings = {"eos_token": "</s>", "pad_token": "<pad>", "model_max_length": 4}
    settings = {name: value for name, value in settings.items() if name not in absent}
    nulls = dict.fromkeys(absent) if is_null else {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, **nulls}))
    tokenizer = open_tokenizer(tmp_path)
    tokens = tokenizer.encode("a circle")
    assert tokens.ids.tolist() == [*ids, *[0] * (4 - len(ids))]
    assert tokens.mask.tolist() == [1] * len(ids) + [0] * (4 - len(ids))
    assert tokenizer.fits("a " * len(absent)) and not tokenizer.fits("a " * 5)
    with pytest.raises(
        PipelineError,
        match="tokenizer of text_encoder does not name both a start token and an end token; .*bos_token and eos_token",
    ):
        STABLE_DIFFUSION.tokenize({"text_encoder": tokenizer}, "a circle", ())


def test_what_is_cut_off_is_shown(pair: tuple[Tokenizer, transformers.CLIPTokenizer]) -> None:
    with pytest.warns(PromptTruncated, match=r"78 tokens, the model reads 75; .*: 'blue Red blue'") as record:
        ids = pair[0]("red " * 75 + "blue Red blue")
    lost = record[0].message
    assert isinstance(lost, PromptTruncated) and lost.lost == "blue Red blue"
    assert ids.tolist() == pair[0]("red " * 75).tolist()


def test_a_prompt_that_just_fits(pair: tuple[Tokenizer, transformers.CLIPTokenizer]) -> None:
    ids = pair[0]("red " * 75)
    assert ids[0] == pair[0].start and ids[-1] == pair[0].end


def test_special_tokens_as_objects(directory: Path, tmp_path: Path) -> None:
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings["bos_token"] = {"content": settings["bos_token"], "lstrip": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    assert open_tokenizer(tmp_path).start == open_tokenizer(directory).start


@pytest.mark.parametrize("fault", ["tokenizer.json", "tokenizer_config.json", "empty", "strange token"])
def test_a_tokenizer_that_cannot_be_used(directory: Path, tmp_path: Path, fault: str) -> None:
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    if fault == "strange token":
        settings["pad_token"] = "no such token"
    contents = {
        "tokenizer_config.json": json.dumps(settings).encode(),
        "tokenizer.json": b"" if fault == "empty" else (directory / "tokenizer.json").read_bytes(),
    }
    for name in contents.keys() - {fault}:
        (tmp_path / name).write_bytes(contents[name])
    with pytest.raises(PipelineError, match="cannot be used"):
        open_tokenizer(tmp_path)
