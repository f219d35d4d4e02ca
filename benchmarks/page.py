"""Write docs/benchmarks.md from the result files. No figure on that page is typed by hand.

python benchmarks/page.py            # write the page, and draw the pictures anew
python benchmarks/page.py --check    # exit code 1 if the page is not what the results say
python benchmarks/page.py --results runs/bench --page runs/bench/page.md
"""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from pictures import draw
from script import PICTURES, RESULTS, ROOT, shown, tell
from sections import SECTIONS, sources, target_table

from segattn.bench.results import Results, read_results, write_text
from segattn.errors import SegmentAttentionError

PAGE = ROOT / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

Written by `benchmarks/page.py` from the files in `benchmarks/results`; edit neither by hand. One script measures each
claim; `make bench` runs them all in under twenty minutes on two cores, and `segattn bench` measures attention and the
prefill of a model on your machine.

- The contestants of a cell **take turns in one process**; each round begins with the next one. Figures are medians over
  rounds. Ratios are taken round by round; in brackets stand their quartiles.
- **Each contestant is checked before it is timed**: attention and its gradients against the formula in float64 on 64
  random queries, models against their logits under a dense mask. A contestant that differs stops the run.
- **The bound** is what the scores that the rule allows would take at the speed of attention without a mask: the time of
  SDPA without a mask, times the share of scores ([semantics](semantics.md), "Cost"). For a whole model it is the causal
  prefill and the scores that segments add to it.
- Segments compute more scores than a causal mask: that is the method, not a loss. What this library can add is the
  distance to the bound.

The layouts: **25/70/5** is a system segment of 25 % of the tokens, a user segment of 70 % and a causal tail of 5 %;
**ten turns** is ten times a user segment and a causal answer of the same length; **one 95 %** is one segment of 95 %
and a causal tail.
"""

NOTHING = "Nothing has been measured yet: run `make bench`."


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is out of date")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with one folder per device")
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    try:
        devices = read_devices(given.results)
        pictures = PICTURES if given.results == RESULTS else given.results
        text = page(devices, pictures, given.page.parent)
        if given.check:
            check(given.page, text)
            return
        for device, found in devices.items():
            for claim, results in found.items():
                draw(results, pictures / device / f"{claim}.png")
        write_text(given.page, text)
    except SegmentAttentionError as error:
        print(f"page.py: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    tell(shown(given.page.resolve()))


def check(path: Path, text: str) -> None:
    """Leave with exit code 1 if a page is not what it should be."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        tell(f"{shown(path.resolve())} is not what the results say; run python benchmarks/page.py")
        raise SystemExit(1)


def read_devices(folder: Path) -> dict[str, dict[str, Results]]:
    """Return folder name of a device -> claim -> results."""
    found: dict[str, dict[str, Results]] = {}
    for path in sorted(folder.glob("*/*.json")):
        results = read_results(path)
        if results.rows:
            found.setdefault(path.parent.name, {})[results.claim] = results
    return found


def page(devices: Mapping[str, Mapping[str, Results]], pictures: Path, folder: Path) -> str:
    """Return the page; its links to pictures are relative to its folder."""
    parts = [HEAD]
    for device, results in devices.items():
        some = next(iter(results.values()))
        parts.append(f"## {some.provenance['device']}")
        if any(found.settings["quick"] for found in results.values()):
            parts.append("**Figures of a smoke test (`--quick`): they show that the scripts run, and nothing else.**")
        parts.append(f"### Targets\n\n{target_table(results)}")
        for claim, section in SECTIONS.items():
            if claim in results:
                link = os.path.relpath(pictures / device / f"{claim}.png", folder)
                parts.append(section(results[claim], Path(link).as_posix()))
        parts.append(f"### Where these figures come from\n\n{sources(results)}")
    return "\n\n".join(part.strip() for part in (parts if devices else [HEAD, NOTHING])) + "\n"


if __name__ == "__main__":
    main()
