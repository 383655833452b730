"""How fast are answers made? The evaluation actor's vLLM engine against `generate` of transformers, on the same weights and prompts.

    python benchmarks/generation.py --config configs/demo.yaml [--prompts 256] [--new-tokens 32] [--rounds 5] [key.path=value …]

All run in this process, in turn, round after round, greedily and without ending early, so that every way makes as many tokens. `alone` asks
transformers one prompt at a time, `batched` 64 of similar length at a time (our `TransformersGenerator`). Start-up is left out, as an actor pays
for it once. Weights are the untuned target's. Prints one JSON line: new tokens a second, ratios (median over rounds, with the range) and the
share of answers that are the same token by token.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from cluster.evaluation_actor import ENVIRONMENT

os.environ.update(ENVIRONMENT)

import numpy as np
import torch
import transformers

from cluster.vllm_engine import VllmGenerator
from proxymix.cases import load_sources
from proxymix.config import Config, load_config
from proxymix.data.encoding import example_ids
from proxymix.evaluation.generation import Tokens, TransformersGenerator
from proxymix.learners.models import load_tokenizer
from proxymix.learners.pretraining import pretrain_base


def main() -> None:
    """Measures every way in turn, so that whatever else the machine does hits all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(arguments.config, [*arguments.overrides, f"evaluation.max_new_tokens={arguments.new_tokens}"])
    folder = pretrain_base(config, config.target.model)
    tokenizer = load_tokenizer(folder, config.target.model.chat_template)
    prompts = test_prompts(config, tokenizer, arguments.prompts)
    vllm, plain = VllmGenerator(folder, config, tokenizer), TransformersGenerator(folder, config, tokenizer)
    vllm.sampling.min_tokens = plain.settings.min_new_tokens = arguments.new_tokens
    ways: dict[str, Callable[[], list[Tokens]]] = {
        "vllm": lambda: vllm.generate(prompts),
        "batched": lambda: plain.generate(prompts),
        "alone": lambda: [plain.generate([prompt])[0] for prompt in prompts],
    }
    answers = {name: way() for name, way in ways.items()}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            made = sum(map(len, way()))
            rates[name].append(made / (time.perf_counter() - started))
    result = {
        "new_tokens_per_second": {name: round(float(np.median(values))) for name, values in rates.items()},
        **{f"vllm_over_{name}": ratio(rates["vllm"], rates[name]) for name in ("alone", "batched")},
        "same_answers": float(np.mean([first == second for first, second in zip(answers["vllm"], answers["batched"], strict=True)])),
    }
    facts = {"prompts": len(prompts), "new_tokens": arguments.new_tokens, "rounds": arguments.rounds}
    print(json.dumps({"benchmark": "generation", "transformers": transformers.__version__, **facts, **result}))


def test_prompts(config: Config, tokenizer: Any, number: int) -> list[Tokens]:
    """Of test rows of all sources in turn, as evaluation asks them; repeated if there are fewer."""
    sources = load_sources(config)
    rows = [source.test[index] for index in range(max(len(source.test) for source in sources)) for source in sources if index < len(source.test)]
    prompts = [example_ids(row, tokenizer)[0] for row in rows]
    return [prompts[index % len(prompts)] for index in range(number)]


def ratio(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """Of paired measurements."""
    ratios = np.divide(first, second)
    return {"median": round(float(np.median(ratios)), 2), "min": round(float(ratios.min()), 2), "max": round(float(ratios.max()), 2)}


if __name__ == "__main__":
    main()
