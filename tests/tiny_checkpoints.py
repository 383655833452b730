"""Checkpoints of the architectures people tune, tiny and with random weights, as their authors would publish them."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from proxymix.data.tokenizers import train_bpe

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
ARCHITECTURES = {
    "llama": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "gpt_neox": {"rotary_pct": 0.25},  # Pythia's
    "mistral": {"num_key_value_heads": 2, "sliding_window": 32},
    "qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
}
SCALED = {  # These do something to what comes out of their output layer.
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 32, "final_logit_softcapping": 0.2, "attn_logit_softcapping": 0.01},
    "granite": {"num_key_value_heads": 2, "logits_scaling": 8.0},
    "cohere": {"num_key_value_heads": 2, "logit_scale": 0.25},
}
UNUSUAL = {"opt": {"ffn_dim": 48, "word_embed_proj_dim": 32}, "bloom": {"n_layer": 2, "n_head": 4}}
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<eos>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' if message['role'] == 'user' else ' ' + message['content'] + eos_token }}{% endfor %}"
)
TEMPLATES = {"llama": LLAMA_3, "mistral": MISTRAL, "qwen2": CHATML, "qwen3": CHATML, "gpt_neox": None}
TEXTS = ["What is the capital of France? Paris.", "Write hello in red: hello", "one two three four five six seven eight nine ten"] * 4


def tiny_tokenizer(architecture):
    """Of the template's family; without a pad token, like Llama's, Mistral's and Pythia's."""
    tokenizer = train_bpe(TEXTS, 400)
    tokenizer.pad_token = None
    if "qwen" in architecture:
        tokenizer.bos_token = None
    tokenizer.chat_template = TEMPLATES.get(architecture)
    return tokenizer


def make_checkpoint(folder, architecture, **settings):
    """Writes model and tokenizer into `folder`; returns it as text."""
    tokenizer = tiny_tokenizer(architecture)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    torch.manual_seed(0)
    own = {**ARCHITECTURES, **SCALED, **UNUSUAL}[architecture]
    config = AutoConfig.for_model(architecture, vocab_size=len(tokenizer), **special, **SIZES | own | settings)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
