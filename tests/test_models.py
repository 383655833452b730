"""Models and tokenizers as they are loaded and saved, whatever tunes them."""

import pytest
from transformers import AutoTokenizer

from proxymix.config import LoraConfig
from proxymix.data.tokenizers import train_bpe
from proxymix.errors import UserError
from proxymix.learners.models import TransformersModel, load_model, load_tokenizer, save_model


def test_a_saved_tokenizer_is_the_bases_own(base_folder, tmp_path):
    tokenizer = train_bpe(["red blue", "blue green"], 280)
    tokenizer.pad_token, tokenizer.chat_template = None, "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(tmp_path / "base")
    assert load_tokenizer(tmp_path / "base").pad_token == "<eos>"
    (tmp_path / "saved").mkdir()
    save_model(load_model(base_folder, "lean"), tmp_path / "base", tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved.pad_token is None  # Ours is not written into other people's models.
    assert saved.apply_chat_template([{"role": "user", "content": "red"}], tokenize=False) == "red"
    assert saved("red green, ünusual")["input_ids"] == tokenizer("red green, ünusual")["input_ids"]
    assert (saved.eos_token, saved.bos_token, len(saved)) == (tokenizer.eos_token, tokenizer.bos_token, len(tokenizer))


def test_what_cannot_be_loaded_is_the_users_to_mend(base_folder, tmp_path):
    with pytest.raises(UserError, match="transformers cannot load"):
        TransformersModel(str(tmp_path))
    with pytest.raises(UserError, match="cannot load the tokenizer of the model"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"target.lora.modules: must name modules"):
        load_model(base_folder, "transformers", LoraConfig(modules=["nowhere"]))
    with pytest.raises(UserError, match=r"target.lora.modules: must not name embeddings"):
        load_model(base_folder, "transformers", LoraConfig(modules=["q_proj", "embed_tokens"]))
