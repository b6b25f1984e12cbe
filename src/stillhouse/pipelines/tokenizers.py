"""CLIP's tokenizer without torch or transformers, out of `tokenizer.json` and `tokenizer_config.json`."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Vocabulary

from stillhouse.errors import PipelineError

SPECIAL_TOKENS = ("bos", "eos", "pad")


class PromptTruncated(UserWarning):
    """The prompt was longer than the text encoder reads; `lost` is the part that has no effect."""

    def __init__(self, lost: str, tokens: int, limit: int) -> None:
        self.lost, self.tokens, self.limit = lost, tokens, limit
        super().__init__(f"the prompt has {tokens} tokens, the model reads {limit}; this part was cut off: {lost!r}")


@dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
    """Text to token ids: start, tokens, end, then padding up to `length`."""

    vocabulary: Vocabulary
    start: int
    end: int
    padding: int
    length: int

    def __call__(self, text: str) -> NDArray[np.int64]:
        """Encode one text, int64 [length]. What does not fit is cut off with a `PromptTruncated` warning."""
        encoding = self.vocabulary.encode(text, add_special_tokens=False)
        room = self.length - 2
        if len(encoding.ids) > room:
            lost = text[encoding.offsets[room][0] :]
            warnings.warn(PromptTruncated(lost, len(encoding.ids), room), stacklevel=2)
        ids = [self.start, *encoding.ids[:room], self.end]
        return np.array(ids + [self.padding] * (self.length - len(ids)), np.int64)

    def fits(self, text: str) -> bool:
        """Whether nothing of a text is cut off."""
        room = self.length - 2
        if len(text.encode()) <= room:  # no token is shorter than a byte
            return True
        return len(self.vocabulary.encode(text, add_special_tokens=False).ids) <= room


def open_tokenizer(directory: Path) -> Tokenizer:
    """Open the tokenizer that diffusers or transformers saved in `directory`.

    Raises:
        PipelineError: a file is missing or broken, or a special token is not in the vocabulary.
    """
    try:
        settings = json.loads((directory / "tokenizer_config.json").read_bytes())
        vocabulary = Vocabulary.from_file(str(directory / "tokenizer.json"))
        start, end, padding = (vocabulary.token_to_id(_text(settings[f"{role}_token"])) for role in SPECIAL_TOKENS)
        length = int(settings["model_max_length"])
    except Exception as error:  # the tokenizers library raises plain Exception for every fault
        raise _unusable(directory, f"{type(error).__name__}: {error}") from error
    if start is None or end is None or padding is None:
        raise _unusable(directory, "its start, end or padding token is not in its vocabulary")
    vocabulary.no_padding()
    vocabulary.no_truncation()
    return Tokenizer(vocabulary, start, end, padding, length)


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _unusable(directory: Path, reason: str) -> PipelineError:
    return PipelineError(f"the tokenizer in {directory} cannot be used ({reason})", fix="import the model again")
