"""The main job in small: tune a model twice, causally and with segments, and compare under both masks.

Every finished cell (an arm's training, one model under one mask) is written to results.json at once; a run that was
cut off goes on with the next cell.

The results, as JSON types:
    settings        DemoSettings.to_dict()
    arms            "causal" | "segments" -> {"curve": [{"step", "loss", "opening_loss"}], "train_losses", "seconds",
                    "samples"}
    matrix          "base" | "causal" | "segments" (how it was tuned) -> "causal" | "segments" (how it was run) ->
                    {"correct": [bool], "losses": [float], "accuracy": {"value", "low", "high"}, "loss": {...},
                    "seconds"}
    comparisons     [{"first", "second", "measure", "difference": {...}, "p_value", "samples", "shown", "verdict"}]
    chance          accuracy of guessing; "baselines" of rules that look only at positions (stories)
    example         {"tokens": [str], "segment_ids": [int], "answer"}: one held-out prompt with its answer
    environment     versions and machine
    seconds         "fetch", per arm and per cell, "total" (of all runs that made these results)
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segattn.data import DataError, Encoder, Sample
from segattn.demo.settings import DemoSettings, demo_samples
from segattn.demo.stories import baselines, stories

__all__ = ["ARMS", "RESULTS_FILE", "TUNED", "run_experiment"]

ARMS = ("causal", "segments")
TUNED = ("base", *ARMS)
RESULTS_FILE = "results.json"

Tell = Callable[[str], None]
"""Takes one line of progress."""


def run_experiment(settings: DemoSettings, output: Path, *, fresh: bool = False, tell: Tell = print) -> dict[str, Any]:
    """Run what is missing of the experiment, and return all results (see the module for their form).

    Args:
        settings: the experiment.
        output: the folder of results.json and of the two adapters.
        fresh: start anew, whatever is there.
        tell: called with lines of progress.

    Raises:
        DataError: the folder holds results of other settings, or the data cannot be used.
        FetchError: the model cannot be had.
        UnsupportedModelError: the model cannot follow segments.
    """
    from segattn.pretrained import resolve_model
    from segattn.pretrained.environment import environment

    results = _Results(output, settings, fresh=fresh)
    train_samples, held_out = demo_samples(settings)
    with results.timed("fetch"):
        model_path = resolve_model(settings.model)
    results.content["environment"] = environment()
    for arm in ARMS:
        if arm not in results.content["arms"]:
            tell(f"tuning {'causally' if arm == 'causal' else 'with segments'}: {settings.steps} steps")
            results.add("arms", arm, _train_arm(arm, settings, model_path, output, train_samples, held_out))
    for tuned in TUNED:
        row = results.content["matrix"].setdefault(tuned, {})
        if len(row) < len(ARMS):
            tell(f"ranking answers: {tuned if tuned == 'base' else tuned + '-tuned'} model under both masks")
            _evaluate(tuned, row, settings, model_path, output, held_out, results)
    results.content.update(_conclusions(results.content, settings, model_path, held_out))
    results.save()
    return results.content


class _Results:
    """results.json: what is finished, written whole after each cell."""

    def __init__(self, folder: Path, settings: DemoSettings, *, fresh: bool) -> None:
        self.file = folder / RESULTS_FILE
        self.content: dict[str, Any] = {"settings": settings.to_dict(), "arms": {}, "matrix": {}, "seconds": {}}
        if not fresh and self.file.exists():
            self._take_up()
        folder.mkdir(parents=True, exist_ok=True)
        self.save()

    def _take_up(self) -> None:
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            theirs, ours = found["settings"], self.content["settings"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"{self.file} is damaged ({error}); start anew with --fresh") from error
        different = [name for name in ours if theirs.get(name) != ours[name]]
        if different:
            changes = ", ".join(f"{name} {theirs.get(name)!r} -> {ours[name]!r}" for name in different)
            raise DataError(
                f"{self.file} holds results of other settings ({changes}); choose another --output, or start anew with "
                "--fresh"
            )
        self.content = found

    def add(self, group: str, name: str, value: dict[str, Any]) -> None:
        self.content[group][name] = value
        self.save()

    def save(self) -> None:
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.file)

    def timed(self, name: str) -> "_Timed":
        return _Timed(self, name)


class _Timed:
    """Adds the seconds of a block to results.json's `seconds`."""

    def __init__(self, results: _Results, name: str) -> None:
        self.seconds, self.name, self.start = results.content["seconds"], name, 0.0

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds[self.name] = round(self.seconds.get(self.name, 0.0) + time.perf_counter() - self.start, 1)


def _train_arm(
    arm: str, settings: DemoSettings, model_path: str, output: Path, train_samples: list[Sample], held_out: list[Sample]
) -> dict[str, Any]:
    from segattn.training import ModelSettings, SFTSettings, TrainSettings, train

    result = train(
        TrainSettings(attention=arm, opening_steps=settings.opening_steps if arm == "segments" else 0),  # type: ignore[arg-type]
        SFTSettings(
            output_dir=str(output / arm),
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=32,
            learning_rate=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            lr_scheduler_type="linear",
            logging_steps=max(1, settings.steps // 20),
            eval_on_start=True,
            eval_strategy="steps",
            eval_steps=max(1, settings.steps // settings.curve_points),
            save_strategy="no",
            disable_tqdm=not sys.stderr.isatty(),
            seed=settings.seed,
            bf16=False,  # the weights have their dtype already; autocast would add copies
        ),
        ModelSettings(
            model_name_or_path=model_path,
            dtype=settings.dtype,
            lora_r=settings.lora_rank,
            lora_alpha=2 * settings.lora_rank,
            # Dropout on the inputs of 210 adapters doubles a step's time on CPU, and no sample is seen twice.
            lora_dropout=0.0,
        ),
        samples=train_samples,
        held_out=held_out[: settings.curve_samples],
    )
    if result.interrupted:
        raise KeyboardInterrupt
    kept = json.loads(json.dumps(result.to_dict()))
    return {name: kept[name] for name in ("curve", "train_losses", "seconds", "samples")}


def _evaluate(
    tuned: str,
    row: dict[str, Any],
    settings: DemoSettings,
    model_path: str,
    output: Path,
    held_out: list[Sample],
    results: _Results,
) -> None:
    from segattn.evaluation import mean_interval, rank_choices, wilson_interval

    model, segmenter = _load(tuned, model_path, output, settings.dtype)
    for attention in ARMS:
        if attention in row:
            continue
        start = time.perf_counter()
        ranked = rank_choices(
            model,
            segmenter,
            held_out[: settings.matrix_samples],
            attention=attention,  # type: ignore[arg-type]
            batch_size=96,
        )
        correct, losses = [one.correct for one in ranked], [one.loss for one in ranked]
        row[attention] = {
            "correct": correct,
            "losses": losses,
            "accuracy": asdict(wilson_interval(sum(correct), len(correct))),
            "loss": asdict(mean_interval(losses)),
            "seconds": round(time.perf_counter() - start, 1),
        }
        results.save()


def _load(tuned: str, model_path: str, output: Path, dtype: str) -> tuple[Any, Any]:
    """Load a model, enabled; its segmenter follows turns, however it was tuned: the matrix runs both masks."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from segattn.modeling import enable
    from segattn.templates import Segmenter

    segmenter = Segmenter.from_tokenizer(AutoTokenizer.from_pretrained(model_path))
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype)
    if tuned != "base":
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(output / tuned))
    return enable(model, segmenter), segmenter


def _conclusions(
    content: dict[str, Any], settings: DemoSettings, model_path: str, held_out: list[Sample]
) -> dict[str, Any]:
    """What is derived from the finished cells: comparisons, chance, the example, the seconds in all."""
    matched = [(("segments", "segments"), ("causal", "causal"))]
    mismatched = [((arm, arm), (arm, other)) for arm, other in (ARMS, ARMS[::-1])]
    comparisons = [_compare(content["matrix"], *pair, measure) for pair in matched + mismatched
                   for measure in ("accuracy", "loss")]  # fmt: skip
    ranked = held_out[: settings.matrix_samples]
    conclusions: dict[str, Any] = {
        "comparisons": comparisons,
        "chance": sum(1 / len(sample.choices or ("",)) for sample in ranked) / len(ranked),
        "example": _example(model_path, min(ranked, key=lambda sample: len(sample.messages[-1]["content"]))),
    }
    if settings.data is None:
        told = stories(len(ranked), settings.seed, settings.difficulty, "held-out")
        conclusions["baselines"] = baselines(told)
    seconds = dict(content["seconds"])
    for arm in ARMS:
        seconds[f"tune {arm}"] = round(sum(content["arms"][arm]["seconds"].values()), 1)
    for tuned in TUNED:
        seconds[f"rank {tuned}"] = round(sum(content["matrix"][tuned][attention]["seconds"] for attention in ARMS), 1)
    seconds["total"] = round(sum(value for name, value in seconds.items() if name != "total"), 1)
    return {**conclusions, "seconds": seconds}


def _compare(matrix: dict[str, Any], first: tuple[str, str], second: tuple[str, str], measure: str) -> dict[str, Any]:
    from segattn.evaluation import compare, compare_means

    key, test = ("correct", compare) if measure == "accuracy" else ("losses", compare_means)
    found = test(*(matrix[tuned][attention][key] for tuned, attention in (first, second)))
    names = [f"tuned {tuned}, run {attention}" for tuned, attention in (first, second)]
    return {"first": names[0], "second": names[1], "measure": measure, **asdict(found), "verdict": found.verdict}


def _example(model_path: str, sample: Sample) -> dict[str, Any]:
    """One held-out prompt with its answer, token by token, for the picture of the mask."""
    from transformers import AutoTokenizer

    from segattn.templates import Segmenter

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    encoded = Encoder(Segmenter.from_tokenizer(tokenizer)).encode(sample)
    return {
        "tokens": [tokenizer.decode([token]) for token in encoded.input_ids],
        "segment_ids": list(encoded.segment_ids),
        "answer": sample.answer,
    }
