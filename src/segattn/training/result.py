"""What a training run leaves behind, in memory and as training_result.json."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from segattn.training.flags import train_command
from segattn.training.settings import ModelSettings, SFTSettings, TrainSettings

__all__ = ["RESULT_FILE", "CurvePoint", "TrainResult", "curve_of", "speed_of", "write_result"]

RESULT_FILE = "training_result.json"


@dataclass(frozen=True)
class CurvePoint:
    """Held-out answer loss (nats per answer token) after `step` optimizer steps, under the plain rule.

    While segments open, `opening_loss` is the loss under the bias of the moment; in mixed training `causal_loss` is
    that of the same data read causally. None otherwise.
    """

    step: int
    loss: float
    opening_loss: float | None = None
    causal_loss: float | None = None


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves behind.

    Attributes:
        output_dir: the folder of the adapter (or full model), its segmentation and tokenizer.
        steps: optimizer steps done.
        interrupted: whether Ctrl-C ended the run early; a checkpoint to resume from is in `output_dir` then.
        curve: held-out answer loss, wherever TRL's flags asked for an evaluation.
        train_losses: (step, mean training loss since the last entry), at TRL's logging steps.
        samples: samples trained on; `dropped` were left out as too long.
        cut: samples of which a part was cut away, `removed_tokens` tokens in all.
        held_out: samples scored.
        rows: rows of an epoch: as many as samples, fewer where they are packed.
        tokens: of all samples, `answer_tokens` of them with a label.
        speed: at TRL's logging steps "step", "tokens_per_second", "answer_tokens_per_second" and "padding_share", since
            the last entry and without evaluations; see `segattn.training.throughput`.
        seconds: "load", "encode", "train" (evaluations included), "save".
        model: the tuned model, in memory, enabled, in eval mode.
        segmenter: the segmenter it was trained with; None for plain text with spans, whose segments it cannot tell.
    """

    output_dir: str
    steps: int
    interrupted: bool
    curve: list[CurvePoint]
    train_losses: list[tuple[int, float]]
    samples: int
    dropped: int
    cut: int
    removed_tokens: int
    held_out: int
    rows: int
    tokens: int
    answer_tokens: int
    speed: list[dict[str, float]]
    seconds: dict[str, float]
    model: Any
    segmenter: Any

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the model and the segmenter, as JSON types."""
        fields = {name: value for name, value in vars(self).items() if name not in ("model", "segmenter")}
        return {**fields, "curve": [asdict(point) for point in self.curve]}


def curve_of(history: list[dict[str, Any]]) -> list[CurvePoint]:
    """Return the held-out losses in the log of a trainer."""
    opening, causal = (
        {log["step"]: log[name] for log in history if name in log} for name in ("eval_opening_loss", "eval_causal_loss")
    )
    return [
        CurvePoint(log["step"], log["eval_loss"], opening.get(log["step"]), causal.get(log["step"]))
        for log in history
        if "eval_loss" in log
    ]


def speed_of(history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return the token rates in the log of a trainer."""
    names = ("step", "tokens_per_second", "answer_tokens_per_second", "padding_share")
    return [{name: log[name] for name in names} for log in history if "tokens_per_second" in log]


def write_result(
    result: TrainResult,
    settings: TrainSettings,
    sft: SFTSettings,
    model: ModelSettings,
    folder: Path,
    flags: dict[str, Any],
) -> Path:
    """Write training_result.json, with the settings of the run, the command for it and the machine, all or nothing."""
    from segattn.pretrained.environment import environment

    content = {
        "result": result.to_dict(),
        "command": train_command(flags),
        "flags": flags,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(),
        "settings": asdict(settings),
        "model": asdict(model),
        "sft": {name: value for name, value in sft.to_dict().items() if not name.startswith("segattn/")},
    }
    partial = folder / f".{RESULT_FILE}.partial"
    partial.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    return partial.replace(folder / RESULT_FILE)
