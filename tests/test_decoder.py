import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from proxymix.errors import UserError
from proxymix.learners.decoder import LeanLlama

GEOMETRIES = {
    "plain": {},
    "grouped": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    "untied": {"tie_word_embeddings": False},
    "wide_heads": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 24},
    "other_theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rms_norm_eps": 1e-3},
}
TOKENS = torch.randint(0, 40, (3, 70), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=GEOMETRIES)
def folder(request, tmp_path):
    """A transformers Llama with weights large enough for errors to show."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
    }
    settings |= {"tie_word_embeddings": True, "initializer_range": 0.2, "max_position_embeddings": 128}
    model = LlamaForCausalLM(LlamaConfig(**settings | GEOMETRIES[request.param]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def theirs(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert type(model) is LlamaForCausalLM
    return model


def everywhere(tokens):
    return torch.arange(tokens.shape[-1]).expand_as(tokens)


@torch.no_grad()
def logits(model):
    if isinstance(model, LeanLlama):
        return model.logits(TOKENS[None], everywhere(TOKENS[None]))[0]
    return model(TOKENS).logits


def test_logits_are_those_of_transformers(folder):
    ours, reference = logits(LeanLlama.load(folder)), logits(theirs(folder))
    assert reference.abs().max() > 1
    assert torch.allclose(ours, reference, atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_transformers(folder):
    ours, reference = LeanLlama.load(folder), theirs(folder)
    ours.logits(TOKENS[None], everywhere(TOKENS[None])).logsumexp(-1).sum().backward()
    reference(TOKENS).logits.logsumexp(-1).sum().backward()
    gradient = reference.get_parameter("model.layers.0.self_attn.q_proj.weight").grad
    assert torch.allclose(ours.layers[0].qkv.grad[0, : len(gradient)], gradient, atol=1e-3, rtol=1e-4)


def test_round_trip_through_our_folder(folder, tmp_path):
    first = LeanLlama.load(folder)
    with torch.no_grad():
        first.layers[0].qkv.mul_(1.5)
    (tmp_path / "ours").mkdir()
    first.save(tmp_path / "ours")
    assert torch.equal(logits(LeanLlama.load(tmp_path / "ours")), logits(first))
    assert torch.allclose(logits(theirs(tmp_path / "ours")), logits(first), atol=1e-5, rtol=1e-5)


def test_replicas_have_weights_and_rows_of_their_own(folder):
    single, both = LeanLlama.load(folder), LeanLlama.load(folder, num_replicas=2)
    expected = logits(single)[:, 4]
    with torch.no_grad():
        for embedding, norm in ((both.embedding[1], both.layers[0].norm_1[1]), (single.embedding, single.layers[0].norm_1)):
            embedding.mul_(1.5)
            norm.mul_(0.5)
        tokens = torch.stack([TOKENS, TOKENS.flip(0)])
        first, second = both.logits(tokens, torch.full((2, len(TOKENS), 1), 4))[:, :, 0]
    assert torch.allclose(first, expected, atol=1e-5)
    assert torch.allclose(second, logits(single)[:, 4].flip(0), atol=1e-5)
    assert not torch.allclose(second.flip(0), expected, atol=1e-1)


def test_padding_to_the_right_is_not_seen(folder):
    model = LeanLlama.load(folder)
    with torch.no_grad():
        short, padded = TOKENS[None, :, :20], torch.cat([TOKENS[None, :, :20], torch.zeros(1, 3, 30, dtype=torch.int64)], 2)
        assert torch.allclose(model.logits(short, everywhere(short)), model.logits(padded, everywhere(short)), atol=1e-5)


def test_only_what_is_asked_for_is_answered(folder):
    """Another number of places in no order, some of them twice: the last layer is computed there alone."""
    model, places = LeanLlama.load(folder), torch.tensor([[5, 0, 5], [7, 11, 2], [19, 3, 4]])
    with torch.no_grad():
        asked = model.logits(TOKENS[None], places[None])[0]
    assert torch.allclose(asked, logits(model).take_along_dim(places[..., None], dim=1), atol=1e-5)


def test_half_precision_runs_in_half_precision(folder):
    model = LeanLlama.load(folder).to(torch.bfloat16)
    assert logits(model).dtype == torch.bfloat16
    assert torch.allclose(logits(model).float(), logits(LeanLlama.load(folder)), atol=0.6)


def test_a_model_that_is_no_llama_is_refused(tmp_path):
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16, n_positions=16)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="lean needs a plain Llama, got 'gpt2'"):
        LeanLlama.load(tmp_path)


@pytest.mark.parametrize(
    "part",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_parameters": {"rope_type": "yarn"}},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"quantization_config": {"quant_method": "fp8"}},
    ],
)
def test_a_llama_with_parts_this_decoder_does_not_have_is_refused(folder, part):
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps(config | part))
    with pytest.raises(UserError, match="use implementation: transformers"):
        LeanLlama.load(folder)


def test_a_folder_that_is_not_whole_is_refused(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"got none for model\.layers\.2"):
        LeanLlama.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot read"):
        LeanLlama.load(folder)
    with pytest.raises(UserError, match="cannot read"):
        LeanLlama.load(tmp_path / "absent")


def test_rows_of_any_length_beside_one_another_are_those_alone(folder):
    """Values and gradients: what stands beside a row, in its replica or another, is not seen."""
    lengths = torch.tensor([[70, 3, 9], [1, 1, 30]])
    tokens, ends = torch.stack([TOKENS, TOKENS.flip(0)]), lengths[..., None] - 1
    together, alone = LeanLlama.load(folder, num_replicas=2), LeanLlama.load(folder, num_replicas=2)
    asked = together.logits(tokens, ends)[:, :, 0]
    asked.logsumexp(-1).sum().backward()
    for row in range(3):
        for replica in range(2):
            length = int(lengths[replica, row])
            one = alone.logits(tokens[:, row : row + 1, :length], torch.full((2, 1, 1), length - 1))[replica, 0, 0]
            one.logsumexp(-1).backward()
            assert torch.allclose(asked[replica, row], one, atol=1e-5, rtol=1e-5)
    for ours, expected in zip(together.parameters(), alone.parameters(), strict=True):
        assert torch.allclose(ours.grad, expected.grad, atol=1e-3, rtol=1e-4)
