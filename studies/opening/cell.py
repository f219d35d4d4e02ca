"""One cell of the study: an arm tuned on a task with a seed, and what is measured of it."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from studies.opening.arms import ARMS, Task

from segattn import Segmenter, causal, enable, from_pretrained
from segattn.data import Encoder, Sample
from segattn.evaluation.attention_pattern import share_ahead
from segattn.evaluation.likelihood import score_answers
from segattn.training import ModelSettings, SFTSettings, TrainSettings, train
from segattn.training.teacher_answers import generate_answers

__all__ = ["BATCH_SIZE", "run_cell"]

BATCH_SIZE = 8
LEARNING_RATE = 1e-3
CURVE_POINTS = 8
AHEAD_ITEMS = 24
MASKS = ("segments", "causal")


def run_cell(arm: str, task: Task, seed: int, model: str, train_samples: list[Sample], items: list[Sample]) -> Any:
    """Tune an arm and measure it under both masks; returns the row of the results file, without its names."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = _tuned(arm, task, seed, model, folder, train_samples, items)
        trained = time.perf_counter()
        tuned, tokenizer = result.model, result.segmenter.tokenizer
        segmenter = Segmenter.from_tokenizer(tokenizer)  # also for the arm that was tuned causally
        enable(tuned, segmenter)
        measured = {mask: _measured(tuned, tokenizer, segmenter, items, mask, task) for mask in MASKS}
        ahead = None
        if ARMS[arm].get("attention") != "causal":
            weighing, _ = from_pretrained(folder, attn_implementation="eager")
            ahead = share_ahead(weighing, items[:AHEAD_ITEMS])
    return {
        "steps": task.steps,
        "curve": [[point.step, point.loss, point.opening_loss] for point in result.curve],
        "train_losses": [[step, round(loss, 5)] for step, loss in result.train_losses],
        "measured": measured,
        "ahead": ahead,
        "train_seconds": round(trained - start),
        "seconds": round(time.perf_counter() - start),
    }


def _tuned(
    arm: str, task: Task, seed: int, model: str, folder: str, train_samples: list[Sample], items: list[Sample]
) -> Any:
    settings = dict(ARMS[arm])
    if settings.get("opening_steps") == "half":
        settings["opening_steps"] = task.steps // 2
    rate = settings.pop("learning_rate", LEARNING_RATE)
    targets = settings.pop("lora_target_modules", ["all-linear"])
    return train(
        TrainSettings(**settings),
        SFTSettings(
            output_dir=folder,
            max_steps=task.steps,
            per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=BATCH_SIZE,
            learning_rate=rate,
            lr_scheduler_type="linear",
            warmup_steps=task.steps // 8,
            logging_steps=4,
            eval_strategy="steps",
            eval_steps=task.steps // CURVE_POINTS,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=False,
            seed=seed,
        ),
        ModelSettings(model_name_or_path=model, dtype="float32", lora_target_modules=targets, lora_dropout=0.0),
        samples=train_samples,
        held_out=items[: task.curve_items],
    )


def _measured(
    model: Any, tokenizer: Any, segmenter: Any, items: Sequence[Sample], mask: str, task: Task
) -> dict[str, list[Any]]:
    """Per item: whether the greedy answer is the right text, and the loss of the right answer, nats per token."""
    losses = [0.0] * len(items)
    for scored in score_answers(model, segmenter, items, [[item.answer] for item in items], attention=mask):  # type: ignore[arg-type]
        losses[scored.position] = -scored.log_likelihoods[0] / scored.tokens[0]
    encoder = Encoder(segmenter)
    correct = []
    with causal(model) if mask == "causal" else nullcontext(), torch.inference_mode():
        for start in range(0, len(items), 32):
            prompts = [encoder.prompt(item, []) for item in items[start : start + 32]]
            answers = generate_answers(model, tokenizer, prompts, max_new_tokens=task.max_new_tokens)
            texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
            batch = items[start : start + 32]
            correct += [text.strip() == item.answer.strip() for text, item in zip(texts, batch, strict=True)]
    return {"correct": [int(value) for value in correct], "losses": [round(loss, 5) for loss in losses]}
