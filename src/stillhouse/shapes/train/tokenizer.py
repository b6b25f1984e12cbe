"""Build the CLIP tokenizer of the model that ships with the package.

Each word of the captions' grammar is one token, and other words are split into smaller pieces, down to letters.
"""

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
"""Words that fine-tuned models may need in addition to the captions' grammar.

These words have tokens from the start, because no token can be added to a trained model."""
WORDS = tuple(
    sorted(
        {*SIZES, *PALETTE, *SHAPES, *" ".join(RELATIONS).split(), *["a", "on", "background"], *_RESERVED_WORDS.split()}
    )
)


def build_tokenizer(length: int = LENGTH) -> Any:
    """Build a `transformers.CLIPTokenizer` that encodes each word of `WORDS` as one token, by byte-pair encoding.

    Args:
        length: number of tokens to which texts are padded or truncated.
    """
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
