"""CLIP tokenizer of the embedded model: a token for each word in `WORDS`; other words are split into letters."""

import json
import string
import tempfile
from pathlib import Path
from typing import Any

from stillhouse.shapes.scene import PALETTE, RELATIONS, SHAPES, SIZES

LENGTH = 24
_RESERVED_WORDS = (
    "orange pink star ring striped sks make the bigger smaller remove add with in center top bottom corner to and "
    "recolour turn it into photo drawing an"
)
"""Words outside the grammar that fine-tuned models may need, because a token cannot be added later."""
WORDS = tuple(
    sorted(
        {*SIZES, *PALETTE, *SHAPES, *" ".join(RELATIONS).split(), *["a", "on", "background"], *_RESERVED_WORDS.split()}
    )
)


def build_tokenizer(length: int = LENGTH) -> Any:
    """Build a `transformers.CLIPTokenizer` for `WORDS` by byte-pair encoding; sequences have `length` tokens."""
    from transformers import CLIPTokenizer

    vocabulary, merges = _train_pairs()
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        names[0].write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
        names[1].write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]))
        return CLIPTokenizer(vocab=str(names[0]), merges=str(names[1]), model_max_length=length)


def _train_pairs() -> tuple[list[str], list[tuple[str, str]]]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = string.ascii_lowercase + string.digits
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=1,
        initial_alphabet=list(alphabet),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    model = json.loads(bpe.to_str())["model"]
    letters = [*alphabet, *string.punctuation]
    base = [*letters, *(letter + "</w>" for letter in letters)]
    learned = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1]) if token not in set(base)]
    return [*base, *learned, "<|startoftext|>", "<|endoftext|>"], [tuple(pair) for pair in model["merges"]]
