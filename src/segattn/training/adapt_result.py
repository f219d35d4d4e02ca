"""What a conversion leaves behind, and the files that say so."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segattn.data import DataError
from segattn.training.adapt_settings import AdaptSettings
from segattn.training.agreement import Agreement

__all__ = ["RESULT_FILE", "AdaptResult", "take_folder", "write_result"]

RESULT_FILE = "adapt_result.json"
SETTINGS_FILE = "adapt_settings.json"

# What may differ between a run and the one that goes on with it.
_NOT_OF_THE_RUN = ("output_dir", "save_steps", "compare_sft", "report_to", "answer_batch_size")


@dataclass(frozen=True)
class AdaptResult:
    """What a conversion leaves behind.

    Attributes:
        output_dir: the folder of the adapter, its segmentation and tokenizer.
        steps: optimizer steps done.
        interrupted: whether Ctrl-C ended the run early; nothing is measured then.
        prompts: how many were learned on; `dropped` were too long, `repeated` ones came before.
        answer_tokens: of all their answers.
        curve: (step, held-out KL per answer token), from step 0 on.
        train_losses: (step, mean KL since the last entry).
        held_out: name of a student -> its agreement with the teacher, prompt by prompt: "base, causal" (the teacher
            again, in other batches: what the arithmetic allows), "base, segments" (before), "adapted, segments"
            (after), "adapted, causal"; with compare_sft also "sft, segments" and "sft, causal".
        adapter_bytes: the size of the adapter's weights on disk.
        seconds: of each part.
        model: the adapted model, in memory, enabled, in eval mode.
        segmenter: it was adapted with.
    """

    output_dir: str
    steps: int
    interrupted: bool
    prompts: int
    dropped: int
    repeated: int
    answer_tokens: int
    curve: list[tuple[int, float]]
    train_losses: list[tuple[int, float]]
    held_out: dict[str, list[Agreement]]
    adapter_bytes: int
    seconds: dict[str, float]
    model: Any
    segmenter: Any

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the model and the segmenter, as JSON types."""
        fields = {name: value for name, value in vars(self).items() if name not in ("model", "segmenter")}
        agreed = {name: [one.to_dict() for one in rows] for name, rows in self.held_out.items()}
        content: dict[str, Any] = json.loads(json.dumps({**fields, "held_out": agreed}))
        return content


def take_folder(folder: Path, settings: AdaptSettings, resume: bool) -> None:
    """Note the settings in the output folder; what goes on there must have the same.

    Raises:
        DataError: nothing to go on with, or a run of other settings.
    """
    file = folder / SETTINGS_FILE
    if resume:
        if not file.is_file():
            raise DataError(f"{folder} holds no run to go on with (no {SETTINGS_FILE}); leave --resume out")
        different = settings.differences(json.loads(file.read_text(encoding="utf-8")), ignored=_NOT_OF_THE_RUN)
        if different:
            raise DataError(
                f"{folder} holds a run of other settings ({', '.join(different)}); give the same, or another "
                "--output-dir without --resume"
            )
    _write(file, settings.to_dict())


def write_result(result: AdaptResult, settings: AdaptSettings, **more: Any) -> None:
    """Write adapt_result.json and its page beside the adapter: result, settings, machine, and what else is given."""
    from segattn.pretrained.environment import environment
    from segattn.training.report import report_run

    content = {**more, "result": result.to_dict(), "settings": settings.to_dict(), "environment": environment()}
    file = Path(result.output_dir) / RESULT_FILE
    _write(file, content)
    report_run(file)


def _write(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    partial.replace(file)
