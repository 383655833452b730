"""Tokenizers: lossless, deterministic, and the same after a round trip through the files that transformers and vLLM load."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from proxymix.data.tokenizers import train_bpe, word_tokenizer
from proxymix.errors import UserError

TEXTS = ["What is the topic of the following paragraph?", "The paragraph is about sports.", "the topic of the text is the weather"] * 3
WORDS = ["red", "blue", "=", "7", "i", "cannot", "help"]
BPE = train_bpe(TEXTS, 300)
CLOSED = word_tokenizer(WORDS)


@pytest.mark.parametrize("tokenizer", [BPE, CLOSED], ids=["bpe", "words"])
def test_special_tokens_and_round_trip_through_files(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)
    assert (loaded.padding_side, loaded.model_max_length) == ("right", 2048)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded("i cannot help = 7").input_ids == tokenizer("i cannot help = 7").input_ids
    assert loaded.decode(loaded("i cannot help = 7").input_ids) == "i cannot help = 7"
    assert loaded.decode([*loaded("red blue").input_ids, 2, 0], skip_special_tokens=True) == "red blue"
    assert json.loads((tmp_path / "tokenizer.json").read_text())["version"]
    batch = loaded(["red", "red blue = 7"], padding=True)
    assert batch.input_ids[0][-1] == 0
    assert batch.attention_mask[0][-1] == 0


@given(st.text())
def test_bpe_is_lossless(text):
    assert BPE.decode(BPE(text, add_special_tokens=True).input_ids) == text


def test_bpe_learns_merges_and_is_deterministic():
    assert len(BPE) == 300
    assert len(BPE("the paragraph").input_ids) < len("the paragraph")
    assert train_bpe(iter(TEXTS), 300).get_vocab() == BPE.get_vocab()
    with pytest.raises(UserError, match=r"pretraining.vocabulary_size: must be at least 259 .* got 258"):
        train_bpe(TEXTS, 258)


@given(st.lists(st.sampled_from(WORDS)))
def test_closed_vocabulary_is_lossless(words):
    ids = CLOSED(" ".join(words)).input_ids
    assert ids == [WORDS.index(word) + 4 for word in words]
    assert CLOSED.decode(ids) == " ".join(words)


def test_unknown_words_and_bad_vocabularies():
    assert CLOSED("red green").input_ids == [4, CLOSED.unk_token_id]
    for words in (["a", "a"], ["a b"], [""], ["<eos>"]):
        with pytest.raises(ValueError, match="distinct"):
            word_tokenizer(words)
