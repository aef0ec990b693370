"""Runs every `$ rigsize ...` line in README and docs and writes its real output below it.

    python validation/build_docs.py            rewrite the blocks
    python validation/build_docs.py --check    exit 1 and name the blocks that differ

A block is a fenced `console` block whose first line is the command. Only commands on stored
profiles belong there: their output does not depend on the machine.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *(ROOT / "docs" / name for name in ("quickstart.md", "hours.md")))
BLOCK = re.compile(r"```console\n\$ (rigsize [^\n]*)\n(.*?)```", re.DOTALL)


def run(command: str) -> str:
    """What the command prints on standard output, where nothing was traced, priced or measured."""
    arguments = shlex.split(command)[1:]
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(
            [sys.executable, "-m", "rigsize", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, "XDG_CACHE_HOME": empty, "XDG_DATA_HOME": empty},
        )
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def rewritten(text: str) -> str:
    """The page with every block's output replaced by the real one."""
    return BLOCK.sub(lambda m: f"```console\n$ {m[1]}\n{run(m[1])}\n```", text)


def main(check: bool) -> int:
    """0 if every block holds the real output (or was rewritten)."""
    stale = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = rewritten(text)
        if new != text:
            stale.append(page.name)
            if not check:
                page.write_text(new, encoding="utf-8")
    for name in stale:
        print(f"{name}: {'differs from what the commands print' if check else 'rewritten'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
