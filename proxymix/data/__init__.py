"""Data: where examples come from, and how they are split.

    SourceConfig → load_source → Source(train ⊃ buffer, validation, test)

Modules: `sources` (one entry point), `formats` and `xstest` (readers), `splits` (disjoint, seeded), `builtin` (generated tasks), `tokenizers`.
"""

from proxymix.data.sources import load_source
from proxymix.data.splits import SplitSizes

__all__ = ["SplitSizes", "load_source"]
