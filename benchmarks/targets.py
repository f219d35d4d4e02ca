"""What the measurements should show: one table of targets, each read from the result files."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from subjects import SMOLLM2

from segattn.bench.results import Results, Row
from segattn.bench.timing import Spread

__all__ = ["TARGETS", "Judged", "Target", "judge"]

Found = tuple[Spread, str] | None
"""The ratio that decides, and the cell that it is from; None if it was not measured."""


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        text: what should be so.
        claim: the result file that tells.
        ratio: what is compared.
        least: the least median that meets it, None for no such limit.
        most: the largest one, likewise.
        find: picks the ratio; the worst one, where the target speaks of several cells.
    """

    text: str
    claim: str
    ratio: str
    find: Callable[[Results], Found]
    least: float | None = None
    most: float | None = None

    @property
    def limit(self) -> str:
        """The limits in words."""
        if self.least is not None and self.most is not None:
            return f"{self.least:.2f} to {self.most:.2f}"
        return f"at least {self.least:.2f}" if self.least is not None else f"at most {self.most:.2f}"

    def met(self, found: Spread) -> bool:
        """Whether a median lies within the limits."""
        return (self.least is None or found.median >= self.least) and (self.most is None or found.median <= self.most)


@dataclass(frozen=True)
class Judged:
    """A target with what was found; `verdict` is "met", "missed" or "not measured"."""

    target: Target
    found: Found
    verdict: str


def judge(results: Mapping[str, Results]) -> list[Judged]:
    """Judge every target by the results that there are."""
    judged = []
    for target in TARGETS:
        found = target.find(results[target.claim]) if target.claim in results else None
        verdict = "not measured" if found is None else "met" if target.met(found[0]) else "missed"
        judged.append(Judged(target, found, verdict))
    return judged


def _worst(
    rows: Iterable[Row], contestant: str, base: str, badness: Callable[[Spread], float], label: Callable[[Row], str]
) -> Found:
    found = [(row.ratio(contestant, base), label(row)) for row in rows if {contestant, base} <= set(row.figures)]
    return max(found, key=lambda pair: badness(pair[0]), default=None)


def _median(spread: Spread) -> float:
    return spread.median


def _attention(results: Results, direction: str) -> list[Row]:
    return [row for row in results.rows if row.cell["pass"] == direction]


def _tokens(row: Row) -> str:
    return f"{row.cell['length']:,} tokens"


def _place(row: Row) -> str:
    return f"{_tokens(row)}, {row.cell['layout']}"


def _faster_than_mask(direction: str) -> Target:
    def find(results: Results) -> Found:
        rows = [
            row
            for row in _attention(results, direction)
            if (row.cell["length"], row.cell["layout"]) == (4096, "25/70/5")
        ]
        return _worst(rows, "dense", "sliced", lambda spread: -spread.median, _place)

    text = f"Sliced attention is 1.5 times as fast as the dense mask at 4,096 tokens, {direction}"
    return Target(text, "attention", "dense / sliced", find, least=1.5)


def _near_bound(direction: str, contestant: str, how: str) -> Target:
    def find(results: Results) -> Found:
        rows = [row for row in _attention(results, direction) if row.cell["length"] >= 2048]
        return _worst(rows, contestant, "bound", _median, _place)

    text = f"Sliced attention is within 1.10 of the bound from 2,048 tokens on, {direction}, {how} (the worst cell)"
    return Target(text, "attention", f"{contestant} / bound", find, most=1.1)


def _prefill(length: int, base: str, most: float, text: str) -> Target:
    def find(results: Results) -> Found:
        rows = [row for row in results.rows if (row.cell["model"], row.cell["length"]) == (SMOLLM2, length)]
        return _worst(rows, "segments", base, _median, _tokens)

    return Target(text, "prefill", f"segments / {base}", find, most=most)


def _decoding(results: Results) -> Found:
    rows = [row for row in results.rows if "prompt" in row.cell]
    off = lambda spread: abs(spread.median - 1.0)  # noqa: E731
    return _worst(rows, "segments", "causal", off, lambda row: f"after {row.cell['prompt']:,} tokens")


def _training(results: Results) -> Found:
    return _worst(results.rows, "segments", "causal", _median, _place)


def _memory(results: Results) -> Found:
    rows = [row for row in results.rows if row.cell["length"] == 16384]
    return _worst(rows, "segments", "causal", _median, _tokens)


TARGETS = (
    _faster_than_mask("forward"),
    _faster_than_mask("forward and backward"),
    _near_bound("forward", "planned", "slices planned"),
    _near_bound("forward and backward", "planned", "slices planned"),
    _near_bound("forward", "sliced", "planning included"),
    _near_bound("forward and backward", "sliced", "planning included"),
    _prefill(512, "causal", 1.03, f"A prefill of 512 tokens of {SMOLLM2} costs what a causal one costs"),
    _prefill(4096, "bound", 1.05, f"A prefill of 4,096 tokens of {SMOLLM2} is within 1.05 of the bound"),
    Target("Decoding a token costs what it costs the stock model (the worst cell)", "decoding", "segments / causal",
           _decoding, least=0.98, most=1.02),
    Target("A training step of up to 512 tokens costs what a causal one costs (the worst cell)", "training_step",
           "segments / causal", _training, most=1.03),
    Target("Memory grows with n: the peak at 16,384 tokens is within 1.1 of the causal one", "memory",
           "segments / causal", _memory, most=1.1),
)  # fmt: skip
