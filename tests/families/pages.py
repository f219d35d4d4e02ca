"""Write docs/families.md and the verified table from the rows of the surveys (survey-RELEASE.json)."""

import subprocess
import sys
from pathlib import Path

from families.survey import read_rows

RELEASES = ("5.16.0", "5.23.0")
ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "families.md"
TABLE = ROOT / "src" / "segattn" / "modeling" / "verified.py"

HEAD = """# Families

Every class that transformers {release} lists for causal language modeling, and every image-text model with a decoder,
as a tiny random model that was run, not read about. This page is generated (`make families`), and a test fails when it
is out of date.

{counts}

- **exact**: every layer follows the rule. Each layer's mask was read from what flows through it (`segattn doctor MODEL`
  does the same with a real model), in texts of 10 and 24 tokens, and the logits equal those of the stock model under
  masks from a double loop (largest difference {worst}, asserted below 1e-4).
- **partial**: attention layers follow the rule, recurrent or convolutional parts run from left to right as they must.
  `segattn.enable(model, allow_partial=True)` accepts that.
- **refused**: `segattn.enable` raises, with the reason in the last column.
- A dash: transformers has no such attention implementation for the class.
- Caches: generating on it gives the tokens and logits of generating without a cache. Where none is listed, the stock
  model does not agree with itself either, or takes other inputs.
- Slices: attention is computed slice by slice, without a mask, in the place of this implementation, with the same
  logits ([attention](attention.md)). In {sliced} classes; the others run under a dense mask.
- FlashAttention 2, 3 and 4 and paged attention drop or cannot take the mask and are refused for every family; load the
  model with `attn_implementation="sdpa"`.
- Flex was run uncompiled. Some families have it on GPUs only; there, `enable` probes the model.

`enable` trusts this table for the classes of transformers {releases} as they were published. Any other release, a
subclass, a patched method or a class that is not listed is probed when it is enabled.

What the table cannot show: layers that choose their keys by content (DeepSeek-V3.2, GLM-MoE-DSA, Doge and others)
choose among those that the rule allows. ALiBi (BLOOM, MPT, Falcon) adds a bias that grows with the position of the key,
so that keys ahead get more of it than any key did in training; the stock Falcon with ALiBi gives other logits under
eager than under sdpa (by .4 in a tiny model), and each is followed as it is. A family that turns to another kernel for
long texts, in which it asks for no mask, raises there.
"""

COLUMNS = ("family", "class", "status", "eager", "sdpa", "flex", "flash", "slices", "caches", "note")


def document():
    rows = read_rows(RELEASES[-1])
    parts = [
        HEAD.format(
            release=RELEASES[-1],
            releases=" and ".join(RELEASES),
            counts="\n".join(counts(rows)),
            sliced=len({row.class_name for row in rows if slices_of(row)}),
            worst=f"{max(row.error for row in rows if row.status != 'refused'):.1g}",
        )
    ]
    for image_text, title in ((False, "Causal language models"), (True, "Image-text models, run on text")):
        parts.append(f"## {title}\n\n" + table([row for row in rows if row.image_text == image_text]))
    return "\n".join(parts)


def counts(rows):
    lines = ["| | exact | partial | refused |", "|---|---|---|---|"]
    for image_text, title in ((False, "causal language models"), (True, "image-text models")):
        statuses = [row.status for row in rows if row.image_text == image_text]
        numbers = " | ".join(str(statuses.count(status)) for status in ("exact", "partial", "refused"))
        lines.append(f"| {title} | {numbers} |")
    return lines


def table(rows):
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        backends = [row.backends.get(name, "") for name in ("eager", "sdpa", "flex_attention")]
        short = ["refused" if found.startswith("refused") else found for found in backends]
        cells = [row.family, f"`{row.class_name}`" if row.class_name else "", f"**{row.status}**", *short, "refused"]
        cells += [
            ", ".join(slices_of(row)),
            ", ".join(row.caches),
            row.reason.replace("|", "\\|").replace("\n", " ")[:300],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def verified():
    """Class -> what holds in every release that has the class, as Python source."""
    by_class = {}
    for release in RELEASES:
        for row in read_rows(release):
            if row.class_name:
                by_class.setdefault(row.class_name, []).append(row)
    exact, partial, refused, sliced = {}, {}, {}, {}
    for name, rows in sorted(by_class.items()):
        for status, found in (("exact", exact), ("partial", partial)):
            backends = [kind for kind in ("eager", "sdpa", "flex_attention") if holds(rows, kind, status)]
            if backends:
                found[name] = " ".join(backends)
        taken = [kind for kind in slices_of(rows[-1]) if all(kind in row.slices for row in rows)]
        if taken:
            sliced[name] = " ".join(taken)
        if all(row.status == "refused" for row in rows):
            refused[name] = rows[-1].reason
    tables = {"exact": exact, "partial": partial, "refused": refused, "sliced": sliced}
    source = TABLE_SOURCE.format(releases=RELEASES, **{name: lines(found) for name, found in tables.items()})
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(TABLE), "-"]
    return subprocess.run(command, input=source, text=True, capture_output=True, check=True).stdout


def slices_of(row):
    """Where a class has SDPA, whoever asks for eager attention wants its weights, which slices do not have."""
    return [kind for kind in row.slices if kind == "sdpa" or row.backends.get("sdpa") == "-"]


def holds(rows, backend, status):
    """Whether a backend came out with this status wherever transformers has it, and transformers has it somewhere."""
    found = {row.backends.get(backend, "not run") for row in rows} - {"-"}
    return found == {status}


def lines(found):
    return "\n".join(f"    {name!r}: {value!r}," for name, value in found.items())


TABLE_SOURCE = """\"\"\"Which model classes follow segments: written from runs of every family (docs/families.md).

`make families` writes this file. Class name -> the attention implementations, separated by spaces, for which it holds.
\"\"\"

# ruff: noqa: E501

__all__ = ["EXACT", "PARTIAL", "REFUSED", "SLICED", "TRANSFORMERS"]

TRANSFORMERS = {releases}
\"\"\"The releases that the table was made with.\"\"\"

EXACT: dict[str, str] = {{
{exact}
}}
\"\"\"Every layer follows the rule.\"\"\"

PARTIAL: dict[str, str] = {{
{partial}
}}
\"\"\"Attention layers follow the rule, recurrent parts cannot.\"\"\"

REFUSED: dict[str, str] = {{
{refused}
}}
\"\"\"Class -> why it cannot honour segments.\"\"\"

SLICED: dict[str, str] = {{
{sliced}
}}
\"\"\"The layers compute slices exactly in the place of these implementations.\"\"\"
"""


if __name__ == "__main__":
    DOCUMENT.write_text(document())
    TABLE.write_text(verified())
