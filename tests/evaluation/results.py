"""Finished results of the two-arm experiment, made up: tests of pictures and reports need no run."""


def interval(value):
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


def cell(value):
    return {
        "correct": [True, False],
        "losses": [0.1, 0.2],
        "accuracy": interval(value),
        "loss": interval(1 - value),
        "seconds": 1.5,
    }


def made_up_results(**changes):
    curve = [
        {"step": 0, "loss": 7.0, "opening_loss": None},
        {"step": 10, "loss": 0.75, "opening_loss": 0.8},
        {"step": 20, "loss": 0.0625, "opening_loss": None},
    ]
    arm = {"curve": curve, "train_losses": [[10, 0.5]], "seconds": {"train": 3.0}, "samples": 40}
    results = {
        "settings": {
            "model": "smollm2", "data": None, "difficulty": "easy", "steps": 20, "batch_size": 2, "opening_steps": 10,
            "learning_rate": 0.001, "warmup_steps": 2, "lora_rank": 4, "curve_samples": 2, "matrix_samples": 2,
            "curve_points": 2, "seed": 3,
        },
        "arms": {"causal": arm, "segments": arm},
        "matrix": {
            name: {"causal": cell(0.25), "segments": cell(0.875)} for name in ("base", "causal", "segments")
        },
        "comparisons": [
            {"first": "tuned segments, run segments", "second": "tuned causal, run causal", "measure": "accuracy",
             "difference": interval(0.01), "p_value": 0.6, "samples": 2, "shown": False,
             "verdict": "no difference shown"},
            {"first": "tuned causal, run causal", "second": "tuned causal, run segments", "measure": "loss",
             "difference": interval(-0.4), "p_value": None, "samples": 2, "shown": True,
             "verdict": "the second is higher"},
        ],
        "chance": 0.167,
        "baselines": {"guessing": 0.167, "last place of the story": 0.339},
        "example": {
            "tokens": ["<|im_start|>", "user", "\n", "Where?", "<script>alert(1)</script>", "barn"],
            "segment_ids": [0, 0, 0, 0, -1, -1],
            "answer": "barn",
        },
        "environment": {"python": "3.11", "torch": "2.13"},
        "seconds": {"fetch": 1.0, "total": 9.5},
    }  # fmt: skip
    return {**results, **changes}
