"""Data: where examples come from, and how they are split.

    SourceConfig → load_source → Source(train ⊃ buffer, validation, test)

Modules: `sources` (one entry point), `formats` and `xstest` (readers), `splits` (disjoint, seeded), `builtin` (generated tasks), `tokenizers`.
"""
