"""One cell of a sweep: a model tuned on a data set as an arm says, with a seed, and what is measured of it.

A finished cell is a file of JSON:
    names               {"model", "data", "arm", "seed"}
    settings            what the arm was trained with, flat; "trained_as": "segments", "causal" or "mixed"
    training            steps, samples, dropped, cut, tokens, answer_tokens, seconds, curve [{"step", "loss"}],
                        train_losses [[step, loss]], accuracy_curve [{"step", "correct"}]; null for the model as it is.
                        Of an arm that is adapted afterwards: its causal training, without curves
    adaptation          what `segattn adapt` took after that; null where an arm has none
    evaluations         [{"task", "attention", "scoring", "ids", "lengths", "correct", "losses", "chance", "seconds"}]
    attention_pattern   {"ahead" (layers x heads), "items", "maps" (mask -> queries x keys), "tokens", "segment_ids"}
    environment         versions and machine
    seconds             in all
What is finished of a cell is kept beside it, so that an interrupted cell goes on with its next part.
"""

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from segattn.evaluation.attention_pattern import attention_map, share_ahead
from segattn.reproduction.accuracy_curve import AccuracyCurve
from segattn.reproduction.adapting import adapt_tuned
from segattn.reproduction.finished_cells import tuned_for
from segattn.reproduction.processes import is_first_process, joined, own_share, write_json
from segattn.reproduction.samples import SweepData
from segattn.reproduction.scoring import evaluate_task, scorings_of
from segattn.reproduction.settings import UNTUNED, SweepSettings

__all__ = ["MASKS", "CellNames", "cell_settings", "run_cell", "split_settings"]

MASKS = ("causal", "segments")
_KEPT = ("steps", "samples", "dropped", "cut", "tokens", "answer_tokens", "train_losses")


class CellNames(NamedTuple):
    """What a cell is."""

    model: str
    data: str
    arm: str
    seed: int

    @property
    def file_name(self) -> str:
        """The name of its files, without ending."""
        return "-".join(map(str, self)).replace(" ", "_").replace(",", "")


def cell_settings(sweep: SweepSettings, names: CellNames) -> dict[str, Any]:
    """Return what a finished cell says of how it was trained."""
    given = sweep.for_cell(names.data, names.arm)
    trained_as = given.get("attention", "segments")
    if names.arm == UNTUNED:
        trained_as = "causal"
    elif given.get("adapt"):
        trained_as = "segments"
    elif given.get("causal_share"):
        trained_as = "mixed"
    data = dataclasses.asdict(sweep.data[names.data])
    about_data = {name: data[name] for name in ("path", "test_items", "question_first", "system", "strata")}
    masks = {} if sweep.masks == "both" else {"masks": sweep.masks}
    return json.loads(json.dumps({**given, **about_data, "trained_as": trained_as, **masks}))


def run_cell(
    sweep: SweepSettings, names: CellNames, data: SweepData, folder: Path, *, tell: Callable[[str], None] = print
) -> dict[str, Any]:
    """Run what is missing of a cell, and return it.

    Args:
        sweep: the settings of all cells.
        names: which cell.
        data: the samples of its data set.
        folder: for the tuned model and what is finished; removed at the end unless the sweep keeps models.
        tell: takes lines of progress.

    Raises:
        SegmentAttentionError: settings or data that cannot be used.
        KeyboardInterrupt: training was interrupted; a later call goes on where its last checkpoint is.
    """
    return _CellRun(sweep, names, data, folder, tell).run()


class _CellRun:
    """The parts of one cell, each kept as soon as it is finished."""

    def __init__(
        self, sweep: SweepSettings, names: CellNames, data: SweepData, folder: Path, tell: Callable[[str], None]
    ) -> None:
        from segattn.pretrained import resolve_model

        self.sweep, self.names, self.data, self.folder, self.tell = sweep, names, data, folder, tell
        self.source = sweep.data[names.data]
        self.settings = cell_settings(sweep, names)
        self.model_path = resolve_model(sweep.models[names.model])
        self.file = folder / "parts.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.parts = self._read()

    def _read(self) -> dict[str, Any]:
        fresh: dict[str, Any] = {"settings": self.settings, "evaluations": [], "seconds": 0.0}
        try:
            parts: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return fresh
        return parts if parts.get("settings") == self.settings else fresh

    def _keep(self, since: float) -> None:
        self.parts["seconds"] = round(self.parts["seconds"] + time.perf_counter() - since, 1)
        write_json(self.file, self.parts)

    def run(self) -> dict[str, Any]:
        from segattn.pretrained.environment import environment

        if "training" not in self.parts:
            start = time.perf_counter()
            self.parts["training"] = None if self.names.arm == UNTUNED else self._train()
            self._keep(start)
        if "adaptation" not in self.parts:
            start = time.perf_counter()
            self.parts["adaptation"] = self._adapt()
            self._keep(start)
        self._evaluate()
        if "attention_pattern" not in self.parts:
            start = time.perf_counter()
            wanted = self.sweep.pattern_items and is_first_process()
            self.parts["attention_pattern"] = self._pattern() if wanted else None
            self._keep(start)
        finished = {"names": self.names._asdict(), **self.parts, "environment": environment()}
        if not self.sweep.keep_models and is_first_process():
            shutil.rmtree(self.folder)
        return finished

    def _train(self) -> dict[str, Any]:
        from transformers import AutoTokenizer

        from segattn.templates import Segmenter
        from segattn.training import train

        given = self._given()
        settings, sft, model = split_settings(
            given, self.model_path, str(self.folder / "model"),
            self.names.seed, self.sweep.curve_points,
        )  # fmt: skip
        count = None
        if sft.max_steps > 0 and not sft.packing:
            count = sft.max_steps * sft.per_device_train_batch_size * sft.gradient_accumulation_steps * sft.world_size
        own = "causal" if given.get("attention") == "causal" else "segments"
        segmenter = Segmenter.from_tokenizer(AutoTokenizer.from_pretrained(self.model_path), policy=settings.policy)
        segmenter = segmenter.restricted(
            causal_roles=settings.causal_roles or (), max_segment_length=settings.max_segment_length
        )
        curve = AccuracyCurve(
            self.data.curve, segmenter, own, points=self.sweep.curve_points,  # type: ignore[arg-type]
            batch_size=self.sweep.batch_size, max_new_tokens=self.source.max_new_tokens,
            file=self.folder / "accuracy_curve.json",
        )  # fmt: skip
        result = train(
            settings,
            sft,
            model,
            samples=self.data.shuffled(self.names.seed, count),
            held_out=self.data.curve,
            callbacks=[curve],
        )
        if result.interrupted:
            raise KeyboardInterrupt
        kept = json.loads(json.dumps(result.to_dict()))
        shown = not given.get("adapt")  # its curves are those of causal training
        return {
            **{name: kept[name] for name in _KEPT},
            "seconds": kept["seconds"]["train"],
            "curve": [{"step": point["step"], "loss": point["loss"]} for point in kept["curve"]] if shown else [],
            "accuracy_curve": curve.points if shown else [],
        }

    def _given(self) -> dict[str, Any]:
        return self.sweep.for_cell(self.names.data, self.names.arm)

    def _adapt(self) -> dict[str, Any] | None:
        given = self._given()
        if not given.get("adapt"):
            return None
        samples = self.data.shuffled(self.names.seed, None)
        return adapt_tuned(
            self.folder / "model", self.folder, given["adapt"], samples, self.names.seed, given.get("dtype")
        )

    def _evaluate(self) -> None:
        done = {(one["task"], one["attention"], one["scoring"]) for one in self.parts["evaluations"]}
        tasks = list(dict.fromkeys(sample.task for sample in self.data.test))
        items = {task: [sample for sample in self.data.test if sample.task == task] for task in tasks}
        own = tuned_for(self.settings["trained_as"])
        wanted = [
            (task, mask, scoring)
            for task in tasks
            for mask in (MASKS if self.sweep.masks == "both" else [own])
            for scoring in scorings_of(items[task], self.source.scoring)
        ]
        missing = [one for one in wanted if one not in done]
        if not missing:
            return
        model = self._load()
        for task, mask, scoring in missing:
            start = time.perf_counter()
            found = joined(
                evaluate_task(
                    model,
                    _segmenter_of(model),
                    own_share(items[task]),
                    attention=mask,  # type: ignore[arg-type]
                    scoring=scoring,
                    batch_size=self.sweep.batch_size,
                    max_new_tokens=self.source.max_new_tokens,
                )
            )
            right = sum(found["correct"]) / len(found["correct"])
            self.tell(f"{self.names.file_name}: {task}, {mask}, {scoring}: {right:.3f} right of {len(items[task])}")
            self.parts["evaluations"].append(found)
            self._keep(start)

    def _load(self, **options: Any) -> Any:
        """The tuned model, enabled with the segmentation that it was tuned with; turns where it was tuned causally."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from segattn.modeling import enable, from_pretrained, segmenter_of
        from segattn.templates import Segmenter

        dtype = self.settings.get("dtype") or self.sweep.train.get("dtype") or "auto"
        options = {"dtype": dtype, **options}
        if self.names.arm == UNTUNED:
            tokenizer = AutoTokenizer.from_pretrained(self.model_path)
            model = enable(
                AutoModelForCausalLM.from_pretrained(self.model_path, **options), Segmenter.from_tokenizer(tokenizer)
            )
        else:
            model, tokenizer = from_pretrained(
                self.folder / ("adapted" if self._given().get("adapt") else "model"), **options
            )
            segmenter = segmenter_of(model)
            if segmenter is None or segmenter.policy == "causal":
                enable(model, Segmenter.from_tokenizer(tokenizer))
        if torch.accelerator.is_available():
            model.to(torch.accelerator.current_accelerator())
        return model.eval()

    def _pattern(self) -> dict[str, Any]:
        model = self._load(attn_implementation="eager")
        items = self.data.curve[: self.sweep.pattern_items]
        shortest = min(items, key=lambda item: len(item.messages[-1]["content"]))
        segmenter = _segmenter_of(model)
        ids = segmenter.apply_chat_template(list(shortest.messages), add_generation_prompt=True)
        return {
            "ahead": share_ahead(model, items),
            "items": len(items),
            "maps": {mask: attention_map(model, shortest, mask) for mask in MASKS},  # type: ignore[arg-type]
            "tokens": segmenter.tokenizer.convert_ids_to_tokens(ids["input_ids"]),
            "segment_ids": ids["segment_ids"],
        }


def _segmenter_of(model: Any) -> Any:
    from segattn.modeling import segmenter_of

    return segmenter_of(model)


def split_settings(given: dict[str, Any], model: str, output: str, seed: int, points: int) -> tuple[Any, Any, Any]:
    """Return the three settings objects of `segattn.training.train` for flat settings, with a sweep's defaults.

    Args:
        given: names of `TrainSettings`, `SFTSettings` and `ModelSettings`; `opening_steps` between 0 and 1 is a
            share of `max_steps`.
        model: folder or hub id.
        output: where the tuned model goes.
        seed: of the run.
        points: evaluations during training.
    """
    from segattn.training import ModelSettings, SFTSettings, TrainSettings

    given = dict(given)
    every = min(1 / points, 1 - 1e-9)  # 1 would be every step, not once
    share = given.get("opening_steps", 0)
    if isinstance(share, float) and 0 < share < 1:
        given["opening_steps"] = round(share * given["max_steps"])
    defaults: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": every,
        "logging_steps": 0.05,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": not sys.stderr.isatty(),
        "per_device_eval_batch_size": given.get("per_device_train_batch_size", 8),
        "bf16": False,
    }
    groups = []
    for kind in (TrainSettings, SFTSettings, ModelSettings):
        names = {one.name for one in dataclasses.fields(kind)}
        own = {name: value for name, value in given.items() if name in names}
        if kind is SFTSettings:
            own = {**defaults, **own, "output_dir": output, "seed": seed, "resume_from_checkpoint": "auto"}
        elif kind is ModelSettings:
            own["model_name_or_path"] = model
        groups.append(kind(**own))
    return groups[0], groups[1], groups[2]
