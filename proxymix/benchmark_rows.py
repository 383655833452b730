"""What a reader must know of a row of the evidence before comparing with it.

method → row_title, marked → NOTES under the table and the plots
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from proxymix.table import method_title

NOTES = {
    "†": "oracle, no rival: learnt (headroom: searched) on the target itself, for this very sequence (headroom: this very case)",
    "‡": "has seen every domain of the sequence, later ones too",
    "§": "trained on this very sequence (the paper's protocol), on the proxy and on other data streams",
    "¶": "tunes adapters only, another capacity than the rows that tune all weights",
}
MARKS = {"oracle": "†", "headroom": "†", "doremi": "‡", "proxymix_same": "§", "olora": "¶"}
_TITLES = {
    "doremi": "DoReMi",
    "olora": "O-LoRA",
    "oracle": "Oracle target RL",
    "headroom": "Headroom (direct search)",
    "proxymix_same": "ProxyMix, same sequence",
    "schedule_mean": "ProxyMix's mean schedule",
    "schedule_tuned": "Tuned schedule",
    "random_policy": "Random-search policy",
    "shuffled": "ProxyMix, shuffled",
}
_RULES = {"grad_sim": "GradSim", "inscl": "InsCL", "proportional": "Proportional", "loss_slope": "Loss-Slope", "random": "Random", "ramp": "Ramp"}

Family = Literal["proxymix", "control", "oracle", "rival"]


def family(method: str) -> Family:
    """What a row is there for: itself, a control of what it learnt, a bound that is no rival, or a rival."""
    if MARKS.get(method) == "†":
        return "oracle"
    if method.startswith("proxymix"):
        return "proxymix"
    return "control" if method in ("schedule_mean", "shuffled", "untrained") or method.endswith("_realised") else "rival"


def row_title(method: str) -> str:
    """As people read it, marked where there is a note.

    >>> row_title("grad_sim_realised"), row_title("oracle"), row_title("proxymix_seed1")
    ('GradSim, realised share', 'Oracle target RL†', 'ProxyMix, seed 1')
    """
    rule, _, how = method.rpartition("_")
    if method in _TITLES:
        return _TITLES[method] + MARKS.get(method, "")
    if rule == "proxymix":
        return f"ProxyMix, {how.replace('seed', 'seed ')}"
    if rule in ("random_examples", "random_tokens"):
        return f"Random {how}\u00a0%, by {rule.removeprefix('random_')}"
    if rule in _RULES and how in ("chosen", "realised"):
        return f"{_RULES[rule]}, {how} {'c' if rule == 'ramp' else 'share'}"
    return method_title(method)


def notes(methods: Iterable[str]) -> list[str]:
    """One sentence a mark that stands at any of `methods`, the mark first."""
    marks = {MARKS[method] for method in methods if method in MARKS}
    return [f"{mark} {text}" for mark, text in NOTES.items() if mark in marks]
