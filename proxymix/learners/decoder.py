"""A Llama decoder with no weight on it: loads and saves ordinary Hugging Face folders, equal to transformers' to 1e-5 in fp32.

    input_ids [replicas, rows, length], places [replicas, rows, asked] → logits [replicas, rows, asked, vocabulary]

Tiny models spend their time in Python and kernel launches, not in arithmetic. This one fuses q/k/v and gate/up, leaves padding out of all
but attention, where no mask is needed (a causal model's earlier positions cannot see what is to their right), computes the last layer's
queries and MLP only where the next token is asked for, and can hold many replicas, each with weights of its own, that go through every
operation together.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from proxymix.cost import ModelShape
from proxymix.errors import UserError
from proxymix.learners.packing import Packing


class Layer(nn.Module):
    """One decoder layer: RMS norm, rotary attention, RMS norm, SwiGLU. Every parameter has a leading replica dimension."""

    def __init__(self, config: dict[str, Any], num_replicas: int) -> None:
        """Args: `config` is the content of a Llama `config.json`."""
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.num_heads = config["num_attention_heads"]
        self.num_key_heads = config.get("num_key_value_heads") or self.num_heads
        self.head_size = config.get("head_dim") or width // self.num_heads
        self.norm_1, self.norm_2 = (nn.Parameter(torch.ones(num_replicas, width)) for _ in range(2))
        self.qkv = nn.Parameter(torch.empty(num_replicas, (self.num_heads + 2 * self.num_key_heads) * self.head_size, width))
        self.out = nn.Parameter(torch.empty(num_replicas, width, self.num_heads * self.head_size))
        self.gate_up = nn.Parameter(torch.empty(num_replicas, 2 * inner, width))
        self.down = nn.Parameter(torch.empty(num_replicas, width, inner))
        self.epsilon = config.get("rms_norm_eps", 1e-6)
        self.grouped = self.num_key_heads != self.num_heads

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, packing: Packing) -> Tensor:
        """`[replicas, tokens, width]` to the same; the rotation is that of a padded row."""
        qkv = torch.bmm(rms_norm(x, self.norm_1, self.epsilon), self.qkv.mT)
        rotated, value = torch.split(self._heads(packing.pad(qkv)), [self.num_heads + self.num_key_heads, self.num_key_heads], dim=1)
        query, key = torch.split(rotate(rotated, cosine, sine), [self.num_heads, self.num_key_heads], dim=1)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=self.grouped)
        return self._after(x, packing.unpad(attended.transpose(1, 2).flatten(2)))

    def forward_at(self, x: Tensor, cosine: Tensor, sine: Tensor, packing: Packing, places: Tensor) -> Tensor:
        """As `forward`, but only the states at `places`, `[replicas, rows, asked]`: `[replicas, rows · asked, width]`."""
        replicas, rows, asked = places.shape
        edge = self.num_heads * self.head_size
        normed = rms_norm(x, self.norm_1, self.epsilon)
        index = (packing.starts + places).flatten()
        x, chosen = (states.flatten(0, 1).index_select(0, index).view(replicas, rows * asked, -1) for states in (x, normed))
        key, value = self._heads(packing.pad(torch.bmm(normed, self.qkv[:, edge:].mT))).chunk(2, dim=1)
        columns = places.view(-1, 1, asked)
        query = torch.bmm(chosen, self.qkv[:, :edge].mT).view(replicas * rows, asked, -1)
        query = rotate(self._heads(query), cosine[columns], sine[columns])
        visible = torch.arange(len(cosine), device=x.device) <= columns[..., None]  # [replicas · rows, 1, asked, length]
        key = rotate(key, cosine, sine)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, enable_gqa=self.grouped)
        return self._after(x, attended.transpose(1, 2).reshape(replicas, rows * asked, -1))

    def _heads(self, rows: Tensor) -> Tensor:
        """`[replicas · rows, length, heads · size]` to `[replicas · rows, heads, length, size]`."""
        return rows.view(*rows.shape[:2], -1, self.head_size).transpose(1, 2)

    def _after(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual, output projection and MLP."""
        x = torch.baddbmm(x, attended, self.out.mT)
        gate, up = torch.bmm(rms_norm(x, self.norm_2, self.epsilon), self.gate_up.mT).chunk(2, dim=-1)
        return torch.baddbmm(x, F.silu(gate) * up, self.down.mT)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`x` `[replicas, tokens, width]`, `weight` `[replicas, width]`."""
    return F.rms_norm(x, x.shape[-1:], None, epsilon) * weight[:, None]


def rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions, `[…, positions, size]`."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat((-second, first), dim=-1) * sine


class LeanLlama(nn.Module):
    """Causal language models of one shape, each a replica with weights of its own."""

    def __init__(self, config: dict[str, Any], num_replicas: int = 1) -> None:
        """Args: `config` is the content of a Llama `config.json`; `num_replicas` models have weights of their own."""
        super().__init__()
        self.config, self.num_replicas = config, num_replicas
        self.embedding = nn.Parameter(torch.empty(num_replicas, config["vocab_size"], config["hidden_size"]))
        self.layers = [Layer(config, num_replicas) for _ in range(config["num_hidden_layers"])]
        self.registered_layers = nn.ModuleList(self.layers)  # the same objects; the plain list keeps their type
        self.norm = nn.Parameter(torch.ones(num_replicas, config["hidden_size"]))
        self.head = None if config.get("tie_word_embeddings") else nn.Parameter(torch.empty_like(self.embedding))
        self._rotary: tuple[Tensor, Tensor] | None = None

    def logits(self, input_ids: Tensor, places: Tensor) -> Tensor:
        """Scores of the token after each of `places`.

        Args:
            input_ids: right-padded, `[replicas, rows, length]`.
            places: positions in their row, `[replicas, rows, asked]`.

        Returns:
            `[replicas, rows, asked, vocabulary]`.
        """
        replicas, (_, vocabulary, width) = len(input_ids), self.embedding.shape
        packing = Packing.of(places.amax(-1) + 1)  # What stands behind the last place asked for cannot change an answer.
        offsets = torch.arange(0, replicas * vocabulary, vocabulary, device=input_ids.device)[:, None]
        tokens = packing.unpad(input_ids[..., : packing.length].reshape(-1, packing.length, 1))[..., 0]
        x = F.embedding(tokens + offsets, self.embedding.reshape(-1, width))
        cosine, sine = (table.to(x.dtype) for table in self._rotation(packing.length, input_ids.device))
        for layer in self.layers[:-1]:
            x = layer(x, cosine, sine, packing)
        x = rms_norm(self.layers[-1].forward_at(x, cosine, sine, packing, places), self.norm, self.config.get("rms_norm_eps", 1e-6))
        return torch.bmm(x, (self.embedding if self.head is None else self.head).mT).view(*places.shape, -1)

    def token_embeddings(self) -> Tensor:
        """The lookup table of the first replica's input, `[vocabulary, width]`."""
        return self.embedding[0]

    @property
    def shape(self) -> ModelShape:
        """What the cost of one replica depends on."""
        *layers, last = self.layers
        body, every = ([p[0] for layer in part for p in layer.parameters() if p.ndim == 3] for part in (layers, self.layers))
        keys = last.qkv[0, last.num_heads * last.head_size :]
        body, attention = [*body, keys], last.num_heads * last.head_size
        tail = sum(p.numel() for p in every) - sum(p.numel() for p in body)
        head = self.embedding if self.head is None else self.head
        return replace(ModelShape.of(body, head[0], attention * len(layers)), tail=tail, tail_attention=attention, skips_padding=True)

    def initialise(self, generator: torch.Generator) -> None:
        """Fresh weights, normal with the config's `initializer_range`; norms stay 1."""
        for name, parameter in self.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=self.config.get("initializer_range", 0.02), generator=generator)

    def save(self, folder: Path) -> None:
        """Writes `config.json` and the first replica's `model.safetensors` under transformers' names."""
        self.snapshot()(folder)

    def snapshot(self, keep: bool = True) -> Callable[[Path], None]:
        """What `save` would write now, to be written at any later time; every worker has all of it, so those that write nothing `keep` nothing."""
        tensors = {name: value.detach().contiguous().clone() for name, value in self._to_transformers(0).items()} if keep else {}

        def write(folder: Path) -> None:
            (folder / "config.json").write_text(json.dumps(self.config, indent=2))
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

        return write

    @classmethod
    def load(cls, folder: Path, num_replicas: int = 1) -> LeanLlama:
        """The model in a Hugging Face folder, in `num_replicas` equal replicas.

        Raises:
            UserError: not a Llama, or a Llama with parts this decoder does not have.
        """
        try:
            config = json.loads((folder / "config.json").read_text())
            tensors = load_file(folder / "model.safetensors")
        except (OSError, ValueError) as error:
            raise UserError(
                f"model: cannot read {str(folder)!r} ({error}); it needs config.json and model.safetensors, or use implementation: transformers"
            ) from error
        ropes = [config.get(key) or {} for key in ("rope_parameters", "rope_scaling")]
        # Files of before transformers 4.43 say `type`.
        plain = config.get("model_type") == "llama" and all(rope.get("rope_type", rope.get("type", "default")) == "default" for rope in ropes)
        parts = any(config.get(key) for key in ("attention_bias", "mlp_bias", "quantization_config"))
        if not plain or parts or config.get("hidden_act", "silu") != "silu":
            found = f"{config.get('model_type')!r} in {str(folder)!r}"
            raise UserError(f"model.implementation: lean needs a plain Llama, got {found}; use implementation: transformers")
        model = cls(config, num_replicas)
        views = model._to_transformers(slice(None))
        if missing := sorted(views.keys() - tensors.keys()):
            raise UserError(
                f"model: {str(folder)!r} must hold every tensor of its config, got none for {', '.join(missing[:3])}; save the model anew"
            )
        with torch.no_grad():
            for name, view in views.items():
                view.copy_(tensors[name])
        return model

    def _to_transformers(self, replica: int | slice) -> dict[str, Tensor]:
        """Views of one replica's parameters, or of all, under transformers' names."""
        names: dict[str, Tensor] = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        if self.head is not None:
            names["lm_head.weight"] = self.head
        for index, layer in enumerate(self.layers):
            prefix, size = f"model.layers.{index}.", layer.head_size
            query, key, value = torch.split(layer.qkv, [layer.num_heads * size, layer.num_key_heads * size, layer.num_key_heads * size], dim=-2)
            gate, up = layer.gate_up.chunk(2, dim=-2)
            parts = {"self_attn.q_proj": query, "self_attn.k_proj": key, "self_attn.v_proj": value, "self_attn.o_proj": layer.out}
            parts |= {"mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": layer.down}
            parts |= {"input_layernorm": layer.norm_1, "post_attention_layernorm": layer.norm_2}
            names |= {f"{prefix}{part}.weight": tensor for part, tensor in parts.items()}
        return {name: tensor[replica] for name, tensor in names.items()}

    def _rotation(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the rotary embedding, each `[length, head_size]`; kept for the longest length seen."""
        if self._rotary is None or self._rotary[0].shape[0] < length or self._rotary[0].device != device:
            rope = self.config.get("rope_parameters") or {}
            theta = rope.get("rope_theta") or self.config.get("rope_theta") or 10000.0
            size = self.layers[0].head_size
            frequencies = theta ** -(torch.arange(0, size, 2, device=device, dtype=torch.float32) / size)
            angles = torch.outer(torch.arange(max(length, 64), device=device, dtype=torch.float32), frequencies).repeat(1, 2)
            self._rotary = angles.cos(), angles.sin()
        return self._rotary[0][:length], self._rotary[1][:length]
