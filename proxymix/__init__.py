"""PROXYMIX: learn the replay schedule on a model you can afford; apply it, frozen, to the model you can't.

    config → sequence → ContinualRun.observe() → Controller.decide() → ContinualRun.advance(weights) → record → report

This package is the science. It never imports ray, vllm or fastapi, and importing it does not pull in torch.
"""

__version__ = "0.1.0"
