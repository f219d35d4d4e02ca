"""What `segattn bench` measures: attention alone, and a model's prefill, on the user's own machine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from segattn.bench.attention import AttentionCell, measure_attention
from segattn.bench.errors import BenchError
from segattn.bench.layouts import layout_ids
from segattn.bench.machine import open_device, pick_dtype, provenance
from segattn.bench.models import check_length, load_model, variants
from segattn.bench.prefill import measure_prefill, prefill_cell
from segattn.bench.results import Results
from segattn.bench.timing import QUICK, Effort

__all__ = ["ATTENTION", "PREFILL", "BenchSettings", "run_bench"]

ATTENTION = ("causal", "full", "dense", "sliced")
PREFILL = ("causal", "segments", "dense")

_EFFORT = Effort(seconds=4.0, least=3, most=30)
_QUICK_LENGTHS = (256,)
_LENGTHS = (512, 1024, 2048, 4096)


@dataclass(frozen=True)
class BenchSettings:
    """What to measure.

    Attributes:
        lengths: tokens; empty takes the default ones.
        layouts: names of `LAYOUTS`.
        model: a folder, a hub id or "smollm2"; None measures attention only.
        backward: attention forward and backward.
        quick: few tokens and rounds, a test that it runs.
        heads: of the query, in attention alone; `kv_heads` divides it.
    """

    lengths: tuple[int, ...] = ()
    layouts: tuple[str, ...] = ("25/70/5",)
    model: str | None = None
    backward: bool = False
    quick: bool = False
    device: str = "cpu"
    dtype: str = "auto"
    heads: int = 8
    kv_heads: int = 2
    head_size: int = 64

    def __post_init__(self) -> None:
        for length in self.lengths:
            for layout in self.layouts:
                layout_ids(layout, length)
        if min(self.heads, self.kv_heads, self.head_size) < 1 or self.heads % self.kv_heads:
            raise BenchError(
                f"there are {self.heads} heads, {self.kv_heads} key heads and {self.head_size} numbers per head; "
                "expected 1 or more of each, and heads that are a multiple of the key heads"
            )

    @cached_property
    def chosen_device(self) -> torch.device:
        """The device to measure on."""
        return open_device(self.device)

    @cached_property
    def chosen_dtype(self) -> torch.dtype:
        """The dtype to measure in."""
        return pick_dtype(self.dtype, self.chosen_device)

    @property
    def chosen_lengths(self) -> tuple[int, ...]:
        """The lengths to measure."""
        return self.lengths or (_QUICK_LENGTHS if self.quick else _LENGTHS)

    def to_dict(self) -> dict[str, Any]:
        """Return what two runs must share to be one."""
        return {
            "model": self.model,
            "quick": self.quick,
            "dtype": str(self.chosen_dtype).removeprefix("torch."),
        }


Cells = Sequence[tuple[dict[str, Any], Callable[[], Any]]]


def run_bench(
    settings: BenchSettings, output: Path | None, *, fresh: bool, tell: Callable[[str], None], progress: Any
) -> Results:
    """Measure every cell; with an output file, each is saved as it is found and not measured again.

    Args:
        settings: what to measure.
        output: a JSON file; None keeps the results in memory.
        fresh: measure anew what the file holds.
        tell: receives lines for the user.
        progress: called with (done, total, what comes next).

    Raises:
        BenchError: something that cannot be measured, or a contestant whose result is wrong.
        FetchError: a model that cannot be brought.
    """
    results = Results(output, "bench", settings.to_dict(), provenance(settings.chosen_device))
    if not fresh and (line := results.take_up()):
        tell(line)
    cells = [*_attention_cells(settings), *_prefill_cells(settings)]
    for done, (cell, measure) in enumerate(cells):
        progress(done, len(cells), ", ".join(str(value) for value in list(cell.values())[:3]))
        if results.find(cell) is None:
            results.add(measure())
    progress(len(cells), len(cells), "")
    results.finish()
    return results


def _attention_cells(settings: BenchSettings) -> Cells:
    options: dict[str, Any] = {"dtype": settings.chosen_dtype, "device": settings.chosen_device}
    sizes = (settings.heads, settings.kv_heads, settings.head_size)
    cells = [
        AttentionCell(length, layout, backward, *sizes)
        for backward in ((False, True) if settings.backward else (False,))
        for layout in settings.layouts
        for length in settings.chosen_lengths
    ]
    return [
        (cell.to_dict(), partial(measure_attention, cell, ATTENTION, _effort(settings), **options)) for cell in cells
    ]


def _prefill_cells(settings: BenchSettings) -> Cells:
    if settings.model is None:
        return []
    # Loaded at once: a model that is not there is an error before the first minute of measuring.
    model = load_model(settings.model, settings.chosen_dtype, settings.chosen_device)
    for length in settings.chosen_lengths:
        check_length(model, length)
    models = variants(model)
    cells = [
        prefill_cell(settings.model, length, layout)
        for layout in settings.layouts
        for length in settings.chosen_lengths
    ]
    return [(cell, partial(measure_prefill, models, PREFILL, cell, _effort(settings))) for cell in cells]


def _effort(settings: BenchSettings) -> Effort:
    return QUICK if settings.quick else _EFFORT
