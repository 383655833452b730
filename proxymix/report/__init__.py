"""The report of a run: one page that stands alone, and its plots as files.

run folder → RunData → figures + sentences → report.html, plots/*.png
"""

from proxymix.report.page import write_report

__all__ = ["write_report"]
