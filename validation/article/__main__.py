"""Write docs/article.md: every claim of the article with our figure, its command and a verdict.

    python -m validation.article

Nothing is tuned on the article. Figures are predictions unless they say otherwise.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from validation.article import footprint, speed, tables
from validation.article.claim import CLAIMS, VERDICTS, Finding

MODULES = (footprint, speed, tables)
"""In the order of the article; importing them registers their claims."""
PAGE = Path(__file__).parents[2] / "docs" / "article.md"
HEAD = """# The article's claims, one by one

Written by `python -m validation.article` from estimates; nothing is tuned on the article.
The article is the "Hardware Requirements for Training of Language Models" this project was made
from; claims are in our words. Peaks are of the device, the CUDA context included, on an A100 80 GB
where nothing else is said.

"""


def main() -> int:
    """Writes the page."""
    found = [(claim.says, claim.find()) for claim in CLAIMS]
    PAGE.write_text(page(found), encoding="utf-8")
    print(f"{len(found)} claims, {summary(found)}: {PAGE}")
    return 0


def summary(found: Sequence[tuple[str, Finding]]) -> str:
    """`9 holds, 2 roughly`."""
    counts = Counter(finding.verdict for _, finding in found)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])


def page(found: Sequence[tuple[str, Finding]]) -> str:
    """The whole page."""
    lines = [f"{len(found)} claims: {summary(found)}.", ""]
    lines += ["| the article says | verdict | we find |", "|---|---|---|"]
    lines += [f"| {says} | **{finding.verdict}** | {finding.ours} |" for says, finding in found]
    lines += ["", "## The commands", ""]
    for says, finding in found:
        lines += [f"{says}:", "", "```", finding.command, "```", ""]
    return HEAD + "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
