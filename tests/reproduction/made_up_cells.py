"""Cells of a sweep, made up, with known effects: tests of summaries and pages need no run."""

import json
import math

import numpy as np

MASKS = ("causal", "segments")


def write_cells(run, cells):
    folder = run / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    for content in cells:
        name = "-".join(str(part) for part in content["names"].values())
        (folder / f"{name}.json").write_text(json.dumps(content))
    return run


def made_up_sweep(
    effects=None,
    seeds=(0, 1, 2),
    items=120,
    data=("banking77",),
    scorings=("likelihood",),
    max_length=None,
    mismatch=2.0,
    generator=0,
    **changes,
):
    """Cells of untuned, causal and other arms.

    Args:
        effects: arm -> how much better than causal (of a latent normal number; 0 is no difference).
        mismatch: how much a causal model loses under segments, of the same number.
        changes: of every cell.
    """
    effects = {"segments": 0.0} if effects is None else effects
    random = np.random.default_rng(generator)
    cells = []
    for name in data:
        hardness = random.normal(0, 1, items)
        lengths = np.sort(random.lognormal(4.2, 0.8, items).astype(int) + 12)
        world = {"hardness": hardness, "lengths": lengths, "scorings": scorings, "random": random, "data": name}
        cells.append(cell(world, "untuned", 0, -2.5, mismatch, max_length))
        for arm, effect in {"causal": 0.0, **effects}.items():
            for seed in seeds:
                cells.append(cell(world, arm, seed, 0.8 + effect + random.normal(0, 0.05), mismatch, max_length))
    return [{**one, **changes} for one in cells]


def cell(world, arm, seed, level, mismatch, max_length):
    causal = arm in ("causal", "untuned")
    steps = [0, 20, 40, 60, 80]
    random, lengths = world["random"], world["lengths"]
    evaluations = []
    for scoring in world["scorings"]:
        for mask in MASKS:
            lost = mismatch if causal and mask == "segments" else 0.0
            latent = level - lost + world["hardness"] + random.normal(size=len(lengths))
            evaluations.append(
                {
                    "task": world["data"], "attention": mask, "scoring": scoring,
                    "ids": [str(17 + number) for number in range(len(lengths))], "lengths": [int(n) for n in lengths],
                    "correct": [int(value > 0) for value in latent],
                    "losses": [float(math.log1p(math.exp(-value))) for value in latent],
                    "chance": 1 / 77 if scoring == "likelihood" else None, "seconds": 27.5,
                }
            )  # fmt: skip
    tuned = arm != "untuned"
    return {
        "names": {"model": "smollm2", "data": world["data"], "arm": arm, "seed": seed},
        "settings": {
            "trained_as": "causal" if causal else "segments", "steps": 80, "learning_rate": 0.001, "seed": seed,
            "max_length": max_length, "opening_steps": 0 if causal else 40,
        } if tuned else {},
        "training": {
            "steps": 80, "samples": 640, "dropped": 0, "cut": 3, "tokens": 41000, "answer_tokens": 2500,
            "seconds": 310.2,
            "curve": [
                {"step": step, "loss": float((7 if causal else 9) * math.exp(-step / 25 + 0.05 * random.normal()))}
                for step in steps
            ],
            "train_losses": [[4, 5.0]],
            "accuracy_curve": [
                {"step": step, "correct": [int(value) for value in random.random(30) < 0.1 + 0.8 * step / 80]}
                for step in steps
            ],
        } if tuned else None,
        "evaluations": evaluations,
        "attention_pattern": pattern(random, arm) if tuned else None,
        "environment": {"python": "3.11", "torch": "2.13", "cores": "2"},
        "seconds": 512.0,
    }  # fmt: skip


def pattern(random, arm, layers=30, heads=9, length=14):
    rows = random.random((length, length)) ** 3 + 4 * (np.arange(length) == 0)
    maps = {}
    for mask in MASKS:
        seen = np.tril(np.ones((length, length)))
        if mask == "segments":
            seen[:10, :10] = 1
        maps[mask] = (rows * seen / (rows * seen).sum(axis=1, keepdims=True)).tolist()
    share = 0.05 if arm == "causal" else 0.2
    return {
        "ahead": (share * random.random((layers, heads))).tolist(),
        "items": 24,
        "maps": maps,
        "tokens": [
            "<|im_start|>",
            "user",
            "\n",
            "My",
            "card",
            "is",
            "lost",
            "?",
            "<|im_end|>",
            "\n",
            "<|im_start|>",
            "assistant",
            "\n",
            "<b>&",
        ],
        "segment_ids": [0] * 10 + [-1] * 4,
    }
