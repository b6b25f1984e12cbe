"""Tokenizers of text encoders, read from the files that transformers saves, without torch or transformers."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Vocabulary

from stillhouse.errors import PipelineError


class PromptTruncated(UserWarning):
    """The warning that a prompt is longer than the text encoder reads.

    Args:
        lost: end of the prompt, which is cut off.
        tokens: number of tokens of the prompt.
        limit: largest number of tokens that the text encoder reads, without start and end tokens.
    """

    def __init__(self, lost: str, tokens: int, limit: int) -> None:
        self.lost, self.tokens, self.limit = lost, tokens, limit
        super().__init__(f"the prompt has {tokens} tokens, the model reads {limit}; this part was cut off: {lost!r}")


class Tokens(NamedTuple):
    """Token ids of a text, int64 [L], and their mask, int64 [L]: 1 for tokens, 0 for padding."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
    """Converts a text to token ids: start, tokens, end, then padding.

    Args:
        vocabulary: splits a text into tokens and gives their ids.
        start, end: ids before and after the tokens of a text; None: no id is added there.
        padding: id that fills up short texts.
        length: largest number of ids that the text encoder reads.
    """

    vocabulary: Vocabulary
    start: int | None
    end: int | None
    padding: int
    length: int

    def __call__(self, text: str) -> NDArray[np.int64]:
        """Return the token ids of a text, int64 [length], cut off or padded to the tokenizer's length.

        Warns:
            PromptTruncated: the text has more tokens, and its end was cut off.
        """
        return self.encode(text).ids

    def encode(self, text: str, length: int | None = None) -> Tokens:
        """Return the token ids of a text and their mask.

        Args:
            text: any text.
            length: number of ids to return, at most the tokenizer's length; None: the tokenizer's length.

        Warns:
            PromptTruncated: the text has more tokens, and its end was cut off.
        """
        length = self.length if length is None else min(length, self.length)
        encoding = self.vocabulary.encode(text, add_special_tokens=False)
        limit = length - self._special_tokens
        if len(encoding.ids) > limit:
            lost = text[encoding.offsets[limit][0] :]
            warnings.warn(PromptTruncated(lost, len(encoding.ids), limit), stacklevel=3)
        ids = [*self._start_ids, *encoding.ids[:limit], *self._end_ids]
        padding = length - len(ids)
        mask = [1] * len(ids) + [0] * padding
        return Tokens(np.array(ids + [self.padding] * padding, np.int64), np.array(mask, np.int64))

    def fits(self, text: str) -> bool:
        """Return whether the text encoder reads the whole text, so that nothing is cut off."""
        limit = self.length - self._special_tokens
        # A token has at least one byte, so a text of at most `limit` bytes fits, and its tokens need not be counted.
        if len(text.encode()) <= limit:
            return True
        return len(self.vocabulary.encode(text, add_special_tokens=False).ids) <= limit

    @property
    def _start_ids(self) -> list[int]:
        return [] if self.start is None else [self.start]

    @property
    def _end_ids(self) -> list[int]:
        return [] if self.end is None else [self.end]

    @property
    def _special_tokens(self) -> int:
        return len(self._start_ids) + len(self._end_ids)


def open_tokenizer(directory: Path) -> Tokenizer:
    """Open the tokenizer that diffusers or transformers saved in `directory`.

    `tokenizer_config.json` names the padding token, and the start and end tokens where texts get such tokens. A missing
    or broken file, or a special token that is not in the vocabulary, raises PipelineError.
    """
    try:
        settings = json.loads((directory / "tokenizer_config.json").read_bytes())
        vocabulary = Vocabulary.from_file(str(directory / "tokenizer.json"))
        start, end = (_special_id(vocabulary, settings, name) for name in ("bos_token", "eos_token"))
        padding = _token_id(vocabulary, settings["pad_token"])
        length = int(settings["model_max_length"])
    except Exception as error:  # the tokenizers library raises plain Exception for every fault
        raise PipelineError(
            f"the tokenizer in {directory} cannot be used ({type(error).__name__}: {error})",
            fix="import the model again",
        ) from error
    vocabulary.no_padding()
    vocabulary.no_truncation()
    return Tokenizer(vocabulary, start, end, padding, length)


def _special_id(vocabulary: Vocabulary, settings: Mapping[str, Any], name: str) -> int | None:
    return None if settings.get(name) is None else _token_id(vocabulary, settings[name])


def _token_id(vocabulary: Vocabulary, token: Any) -> int:
    """Return the id of a special token, which transformers saves as a text or as an object with `content`."""
    text = str(token["content"] if isinstance(token, dict) else token)
    number: int | None = vocabulary.token_to_id(text)
    if number is None:
        raise ValueError(f"the special token {text!r} is not in the vocabulary of tokenizer.json")
    return number
