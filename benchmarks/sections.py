"""The sections of docs/benchmarks.md: a picture, a table and a few sentences for each claim."""

from collections.abc import Callable, Mapping
from statistics import median

from targets import judge
from writing import bare, bullets, of, picture, prose, ratio, seconds, table, three, tokens

from segattn.bench.attention import CONTESTANTS
from segattn.bench.results import Results, Row
from segattn.bench.timing import Spread

__all__ = ["SECTIONS", "sources", "target_table"]


def target_table(results: Mapping[str, Results]) -> str:
    """What should be so, what is, and whether that is enough."""
    lines = []
    for judged in judge(results):
        measured = "-" if judged.found is None else f"{ratio(judged.found[0])}, {judged.found[1]}"
        verdict = judged.verdict if judged.verdict == "met" else f"**{judged.verdict}**"
        lines.append([judged.target.text, f"{judged.target.ratio}: {judged.target.limit}", measured, verdict])
    return table(["target", "ratio", "measured", "verdict"], lines, words=4)


def attention(results: Results, link: str) -> str:
    """Attention alone."""
    ran = {name for row in results.rows for name in row.figures}
    names = [name for name in ("bound", "sliced", "planned", "dense", "transformers", "flex") if name in ran]
    headings = ["layout", "tokens", "causal, ms", *names, "planned / bound", "sliced / bound", "dense / sliced"]
    text = picture("Attention", "Time of attention relative to causal SDPA", link)
    text += prose(
        f"Times in {results.settings['dtype']}, relative to causal SDPA; that one's stand in milliseconds. What a mask "
        "costs does not depend on what stands in it, so beyond 4,096 tokens masks are timed in the first layout only, "
        "and so is the backward pass. There are 8 heads up to 2,048 tokens (2 of key and value), then 4 (1), and 2 (1) "
        "beyond 4,096. "
        "FlexAttention compiles for each length class, and is timed at two lengths; torch has no backward pass for "
        "it on CPU."
    )
    layouts = list(dict.fromkeys(row.cell["layout"] for row in results.rows))
    for direction in dict.fromkeys(row.cell["pass"] for row in results.rows):
        rows = [row for row in results.rows if row.cell["pass"] == direction]
        lines = []
        for row in sorted(rows, key=lambda row: layouts.index(row.cell["layout"])):
            figures = [f"{1000 * row.figure('causal').median:.1f}", *(of(row, name, "causal", bare) for name in names)]
            ends = [of(row, "planned", "bound"), of(row, "sliced", "bound"), of(row, "dense", "sliced")]
            lines.append([row.cell["layout"], tokens(row), *figures, *ends])
        text += f"{direction.capitalize()}:\n\n{table(headings, lines)}"
    text += bullets({name: what for name, what in CONTESTANTS.items() if name in ran})
    largest = max(error for row in results.rows for error in row.errors.values())
    return text + prose(f"The largest error of any contestant: {largest:.1e} of the largest number of its output.")


def thresholds(results: Results, link: str) -> str:
    """When slices pay."""
    lines = [
        [row.cell["layout"], tokens(row), str(row.facts["slices"]), of(row, "planned", "dense"), _auto(row)]
        for row in results.rows
    ]
    factor = median(row.ratio("dense", "full").median for row in results.rows)
    per_call = [cost for row in results.rows if (cost := _scores_per_call(row)) is not None]
    costs = f", and one more slice costs as much as {median(per_call):,.0f} scores (medians over the rows)"
    return (
        picture("Thresholds", "Time of slices relative to a mask, for many short segments", link)
        + prose(
            "What many short segments cost in slices, relative to a dense mask, and what `backend='auto'` takes. The "
            "mask and the plan are there already, as in all layers of a model but the first."
        )
        + table(["layout", "tokens", "slices", "slices / mask", "auto takes"], lines)
        + prose(
            f"The two numbers behind that choice, as measured here: a score takes {factor:.2f} times as long under a "
            f"mask{costs if per_call else ''}."
        )
    )


def _auto(row: Row) -> str:
    chosen = "slices" if row.facts["auto"] == "planned" else "the mask"
    faster = "slices" if row.ratio("planned", "dense").median < 1 else "the mask"
    return chosen if chosen == faster else f"{chosen} ({faster}: faster)"


def _scores_per_call(row: Row) -> float | None:
    """What a slice cost beyond its scores, counted in scores without a mask; None where that drowns in the noise."""
    heads, dense = row.cell["heads"], row.facts["scores"]["dense"]
    beyond = row.ratio("planned", "full").median * heads * dense - heads * row.facts["pairs"]
    return beyond / row.facts["slices"] if row.facts["slices"] > 1 and beyond > 0 else None


def prefill(results: Results, link: str) -> str:
    """Whole models."""
    lines = [
        [row.cell["model"], tokens(row), seconds(row.figure("causal").median), of(row, "segments", "causal"),
         of(row, "dense", "causal"), of(row, "bound", "causal", bare), of(row, "segments", "bound")]
        for row in results.rows
    ]  # fmt: skip
    headings = ["model", "tokens", "causal", "segments / causal", "dense mask / causal", "bound / causal"]
    return (
        picture("Prefill", "Time of a prefill relative to a causal one", link)
        + prose(
            f"In {results.settings['dtype']}, layout 25/70/5. Segments are what `segattn.enable(model)` runs, which "
            "chooses slices or a mask by itself; all that is made once for the layers is in its time. The single layer "
            "is random. The bound adds to the causal prefill."
        )
        + table([*headings, "segments / bound"], lines)
    )


def decoding(results: Results, link: str) -> str:
    """After the prefill, and once."""
    lines = [
        [f"{row.cell['prompt']:,}", seconds(row.figure("causal").median), seconds(row.figure("segments").median),
         of(row, "segments", "causal", three), str(len(row.figures["causal"]))]
        for row in results.rows if "prompt" in row.cell
    ]  # fmt: skip
    text = picture("Decoding, and switching on", "Time of one decoded token relative to the stock model", link)
    text += prose("One token of SmolLM2-135M on the cache of a prefill; the two models take turns token by token.")
    text += table(["tokens before", "stock", "segments", "segments / stock", "pairs"], lines, words=0)
    for row in results.rows:
        if "probe" in row.figures:
            switch, probe = (seconds(row.figure(name).median) for name in ("enable and disable", "probe"))
            text += prose(
                f"`enable` and `disable` together take {switch}. The probe, for classes outside of the verified "
                f"table, takes {probe} for its {row.facts['layers']} layers."
            )
    return text


def training_step(results: Results, link: str) -> str:
    """One step of training."""
    lines = [
        [row.cell["layout"], tokens(row), seconds(row.figure("causal").median), of(row, "segments", "causal"),
         str(len(row.figures["causal"]))]
        for row in results.rows
    ]  # fmt: skip
    return (
        picture("Training step", "Time of a training step relative to a causal one", link)
        + prose(
            f"LoRA (rank 32, all linear layers) on SmolLM2-135M in {results.settings['dtype']}, one sample a step: "
            "forward, backward and AdamW. The first losses in slices and under a mask are the same."
        )
        + table(["layout", "tokens", "causal", "segments / causal", "rounds"], lines)
    )


def first_token(results: Results, link: str) -> str:
    """With the prefix cache and without."""
    lines = [
        [f"{row.cell['system']:,}", str(row.cell["question"]), seconds(row.figure("no cache").median),
         seconds(row.figure("prefix cache").median), of(row, "no cache", "prefix cache")]
        for row in results.rows
    ]  # fmt: skip
    headings = ["system prompt, tokens", "question, tokens", "no cache", "prefix cache", "times as fast"]
    return (
        picture("Time to the first token", "Time to the first token, prefix cache relative to none", link)
        + prose(
            "SmolLM2-135M, one system prompt, another question each time: only the system prompt comes from the cache "
            "(`segattn.PrefixCache`). The first logits are the same with and without it."
        )
        + table(headings, lines, words=0)
    )


def memory(results: Results, link: str) -> str:
    """Peaks of fresh processes."""
    lines = []
    for row in results.rows:
        peaks = {name: row.figure(name).median for name in ("loaded", "causal", "segments", "dense")}
        added = {name: peak - peaks["loaded"] for name, peak in peaks.items()}
        share = f"{added['segments'] / added['causal']:.2f}" if added["causal"] > 0 else "-"
        figures = [f"{peak / 2**20:,.0f}" for peak in peaks.values()]
        lines.append([tokens(row), *figures, of(row, "segments", "causal"), of(row, "dense", "causal"), share])
    headings = ["tokens", "no prefill", "causal", "segments", "dense mask", "segments / causal", "dense mask / causal"]
    return (
        picture("Memory", "Peak memory of a prefill against length", link)
        + prose(
            f"A prefill of one random layer of Llama 3.2 1B's shape in {results.settings['dtype']}. Each figure is the "
            "peak of a fresh process, in MiB. The last column takes off both sides what a process holds that runs no "
            "prefill."
        )
        + table([*headings, "segments / causal, the prefill alone"], lines, words=0)
    )


def cost_model(results: Results, link: str) -> str:
    """Predictions, first against what was measured."""
    lines = [
        [row.cell["model"], tokens(row), f"{row.facts['counts alone']:.3f}", of(row, "segments", "causal", three),
         three(Spread(**row.facts["measured"])), f"{row.facts['slowdown']:.1f}, {row.cell['slowdown']}"]
        for row in results.rows if "measured" in row.facts
    ]  # fmt: skip
    large = [row for row in results.rows if "measured" not in row.facts]
    slowdown = next((row.facts["slowdown"] for row in large if row.cell["slowdown"] != "none"), 1.0)
    return (
        picture("Cost on larger models", "Predicted against measured ratios, and predictions for Llama 3", link)
        + prose(
            "Predicted, not measured. A prefill of n tokens takes 2 n operations for each weight of a linear layer, "
            "and 4 d for each score of each head (d is the head size). The slowdown says how much longer an operation "
            "of attention takes than one of the rest of the model. It is taken from one length, and predicts the "
            "others. First the check, segments / causal:"
        )
        + table(["model", "tokens", "counts alone", "with the slowdown", "measured", "slowdown"], lines)
        + prose(
            "Then Llama 3, segments / causal: from the counts alone, and with the slowdown of the single layer here "
            f"({slowdown:.1f}). Other machines have another one."
        )
        + _llama3(large)
    )


def _llama3(rows: list[Row]) -> str:
    lengths = list(dict.fromkeys(row.cell["length"] for row in rows))
    kinds = list(dict.fromkeys(row.cell["slowdown"] for row in rows))
    found = {tuple(row.cell.values()): of(row, "segments", "causal", bare) for row in rows}
    lines = [
        [model, layout, *(", ".join(found[model, length, layout, kind] for kind in kinds) for length in lengths)]
        for model, layout in dict.fromkeys((row.cell["model"], row.cell["layout"]) for row in rows)
    ]
    return table(["model", "layout", *(f"{length:,} tokens" for length in lengths)], lines, words=2)


def sources(results: Mapping[str, Results]) -> str:
    """Machine and versions, then time and commit of each claim."""
    facts = next(iter(results.values())).provenance["environment"]
    named = ("processor", "cores", "threads", "memory", "device", "system", "python", "torch", "transformers", "peft")
    text = table(["machine", ""], [[name, facts[name]] for name in named if name in facts], words=2)
    lines = []
    for claim, found in results.items():
        source = found.provenance
        times = [source["began"], found.finished or "not finished"]
        lines.append([claim, *times, found.settings["dtype"], source["commit"] or "-", source["code"]])
    text += prose(
        "Code is a fingerprint of the package's sources without its command line: a benchmark that was cut off goes on "
        "only with the same code, machine and settings."
    )
    return text + table(["claim", "began", "finished", "dtype", "commit", "code"], lines, words=6)


SECTIONS: dict[str, Callable[[Results, str], str]] = {
    "attention": attention,
    "thresholds": thresholds,
    "prefill": prefill,
    "decoding": decoding,
    "training_step": training_step,
    "first_token": first_token,
    "memory": memory,
    "cost_model": cost_model,
}
"""Claim -> its section, in the order of the page."""
