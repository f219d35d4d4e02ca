"""An arm that is tuned causally and then learns to read with segments from its own causal answers (`segattn adapt`)."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segattn.data import DataError, Sample

__all__ = ["adapt_tuned", "check_adapt"]

_SET_BY_THE_SWEEP = ("model", "prompts", "output_dir", "seed", "report_to", "compare_sft")
_KEPT = ("steps", "prompts", "dropped", "repeated", "answer_tokens", "train_losses", "seconds")


def check_adapt(arm: str, settings: Mapping[str, Any]) -> None:
    """Refuse an arm whose `adapt` cannot be used.

    Args:
        arm: its name.
        settings: of the arm; "adapt" holds settings of `segattn adapt`.

    Raises:
        DataError: says what was expected.
    """
    from segattn.training.adapt_settings import AdaptSettings

    given = settings.get("adapt")
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise DataError(
            f"adapt of the arm {arm} is {given!r}; expected settings of `segattn adapt`, e.g. {{steps: 80}}"
        )
    known = {one.name for one in dataclasses.fields(AdaptSettings)}
    for name in given:
        if name not in known or name in _SET_BY_THE_SWEEP:
            why = "is set by the sweep itself" if name in known else "is no setting of `segattn adapt`"
            raise DataError(f"adapt of the arm {arm}: {name} {why}; see `segattn adapt --help`")
    if settings.get("attention") != "causal":
        raise DataError(
            f"the arm {arm} is tuned with attention {settings.get('attention', 'segments')} before `adapt`; expected "
            "attention: causal, for its causal answers are what it learns to give with segments"
        )


def adapt_tuned(
    tuned: Path, folder: Path, given: Mapping[str, Any], samples: Sequence[Sample], seed: int, dtype: str | None
) -> dict[str, Any]:
    """Merge a causally tuned model, convert it, and return what the conversion took.

    Args:
        tuned: the folder of the adapter or model.
        folder: for the merged model (`merged`) and its new adapter (`adapted`).
        given: settings of `segattn adapt`; as defaults no prompt is measured, and too long ones are left out.
        samples: prompts and answers to learn on, in order.
        seed: of the new adapter's first weights.
        dtype: of the frozen weights; None as `segattn adapt` has it.

    Raises:
        KeyboardInterrupt: it was interrupted; a later call goes on where its last checkpoint is.
    """
    from segattn.training.adapt import adapt
    from segattn.training.adapt_settings import AdaptSettings
    from segattn.training.prompts import Prompt

    output = folder / "adapted"
    defaults = {"held_out": 0, "too_long": "drop", **({"dtype": dtype} if dtype else {})}
    settings = AdaptSettings(
        **{**defaults, **given}, model=str(_merged(tuned, folder / "merged", dtype)), output_dir=str(output), seed=seed
    )
    # The first ones are kept apart where some are measured.
    wanted = settings.held_out + settings.steps * settings.batch_size
    prompts = [Prompt(sample, where=f"sample {sample.id or number}") for number, sample in enumerate(samples[:wanted])]
    result = adapt(settings, prompts=prompts, resume=output.exists())
    if result.interrupted:
        raise KeyboardInterrupt
    kept = json.loads(json.dumps(result.to_dict()))
    return {name: kept[name] for name in _KEPT}


def _merged(tuned: Path, folder: Path, dtype: str | None) -> Path:
    """Save a tuned model with its adapter merged; the folder is there only once it is whole."""
    from segattn.modeling import disable, from_pretrained

    if folder.exists():
        return folder
    model, tokenizer = from_pretrained(tuned, dtype=dtype or "auto")
    model = disable(model)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    partial = folder.with_suffix(".partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    return partial.rename(folder)
