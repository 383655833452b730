"""Tokenizers of the models trained here, in the form that transformers and vLLM load.

    texts → train_bpe → byte-level BPE            words → word_tokenizer → one token a word, for closed vocabularies

Both save as plain `tokenizer.json` and `tokenizer_config.json`. They add no special tokens by themselves: an answer's end is the trainer's to mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from proxymix.errors import UserError

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
_MAX_LENGTH_TOKENS = 2048
"""A bound for loaders that ask for one; the models have rotary positions and no table that ends."""


def train_bpe(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; any text is encoded without loss. Deterministic in `texts` and `vocabulary_size`.

    Args:
        texts: what to learn merges from.
        vocabulary_size: tokens in all, among them `<pad>`, `<bos>`, `<eos>` (ids 0, 1, 2) and the 256 bytes; fewer when `texts` hold fewer merges.

    Raises:
        UserError: `vocabulary_size` cannot hold the bytes and special tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocabulary_size < (smallest := len(alphabet) + 3):
        raise UserError(f"pretraining.vocabulary_size: must be at least {smallest} (256 bytes and 3 special tokens), got {vocabulary_size}; raise it")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary_size, special_tokens=[PAD, BOS, EOS], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token per word, split at whitespace; decoding joins with single spaces. Any other word is `<unk>`.

    Args:
        words: the vocabulary, distinct and without whitespace; word i gets id i + 4, after `<pad>`, `<bos>`, `<eos>`, `<unk>`.

    Raises:
        ValueError: a word is empty, repeated, a special token, or holds whitespace.
    """
    vocabulary = {word: index for index, word in enumerate([PAD, BOS, EOS, UNK, *words])}
    if len(vocabulary) != len(words) + 4 or any(word.split() != [word] for word in words):
        raise ValueError(f"words must be distinct, free of whitespace and no special token, got {len(words)} words of which some are not")
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # Without a decoder the library joins tokens with single spaces, which is the inverse of splitting at whitespace.
    return _wrapped(tokenizer, unk_token=UNK)


def _wrapped(tokenizer: Tokenizer, **special: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="right",
        model_max_length=_MAX_LENGTH_TOKENS,
        clean_up_tokenization_spaces=False,
        **special,
    )
