"""train_report.html: one self-contained page from what a run leaves behind, written anew from that file alone.

The file is training_result.json (`segattn train`) or adapt_result.json (`segattn adapt`). Whatever it lacks, the page
does without: older runs and runs that were cut short can be read too.
"""

import json
import logging
import math
import os
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segattn.reports.numbers import interval_text
from segattn.reports.page import ReportError, write_page
from segattn.reports.pictures import draw_token_rates, draw_training, svg
from segattn.training.adapt_settings import AdaptSettings

__all__ = ["REPORT_FILE", "findings", "report_run", "write_train_report"]

REPORT_FILE = "train_report.html"

logger = logging.getLogger(__name__)

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
# Field of a point of the curve -> how the page calls it; the first is the plain rule.
_HELD_OUT = {
    "loss": "held-out",
    "opening_loss": "held-out, under the opening bias",
    "causal_loss": "held-out, causally",
}
_MEASURES = {"kl": "KL per token", "top1": "same likeliest token", "exact": "same answer", "prefix": "same beginning"}
_MOST_ROWS = 200


def report_run(result_file: Path) -> Path | None:
    """Write the page of a run that has just ended; without matplotlib say how to get it, and fail for no reason.

    Args:
        result_file: training_result.json or adapt_result.json.

    Returns:
        The page beside it, None where there is none.
    """
    try:
        return write_train_report(json.loads(result_file.read_text(encoding="utf-8")), result_file.parent / REPORT_FILE)
    except ModuleNotFoundError as error:
        missing = f"{error.name} is missing: pip install 'segattn[viz]', then segattn report {result_file.parent}"
        logger.warning("no %s: %s", REPORT_FILE, missing)
    except Exception:  # the run is over and saved: its page must not be what fails
        logger.exception("%s could not be written; the run is saved", REPORT_FILE)
    return None


def write_train_report(content: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the page; it appears when it is complete. Pictures are inline, nothing is loaded from elsewhere.

    Args:
        content: what training_result.json or adapt_result.json holds.
        path: the HTML file.

    Returns:
        The path.

    Raises:
        ReportError: no result in it.
    """
    own = _own(content)
    return write_page(_TEMPLATE, _page(content["result"], content, own), path)


def findings(content: Mapping[str, Any]) -> list[str]:
    """Say in words what came out of a run. Arguments and errors as for `write_train_report`."""
    own = _own(content)
    return _findings(content["result"], *_series(content["result"]), own)


def _own(content: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of this kind of run alone."""
    if not isinstance(content.get("result"), Mapping):
        raise ReportError(
            'there is no "result" in it; expected a training_result.json (segattn train) or an adapt_result.json '
            "(segattn adapt)"
        )
    conversion = content["result"].get("prompts") is not None
    return _conversion(content) if conversion else _training(content)


def _training(content: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of a run of `segattn train` alone."""
    result, settings, model = content["result"], content.get("settings") or {}, content.get("model") or {}
    flags, command = content.get("flags"), content.get("command")
    note = ""
    if flags is None:
        flags = {**settings, **model}
        caption = "Settings, defaults included."
    else:
        caption = "Those that differ from the defaults; segattn train --all-flags lists all."
        off = ", ".join(name for name, value in flags.items() if value is None)
        if off:
            note = f"Set in Python, which the command line cannot switch off: {off}."
        elif settings.get("data") is None:
            note = "The samples were passed in Python; give the command --data."
    how = "under segments" if settings.get("attention", "segments") == "segments" else "causally"
    data = Path(str(settings["data"])).name if settings.get("data") else "samples passed in Python"
    rows = result.get("rows")
    packed = rows is not None and rows < (result.get("samples") or 0)
    return {
        "title": f"Fine-tuning {how}",
        "about": [_name(model.get("model_name_or_path")), data],
        "measure": "loss (nats per answer token)",
        "what": "held-out answer loss",
        "command": command,
        "command_note": note,
        "settings": {name: _value(value) for name, value in flags.items()},
        "settings_caption": caption,
        "resume": "--resume_from_checkpoint last",
        "data": {
            "samples": result.get("samples"),
            "samples left out as too long": result.get("dropped"),
            "samples cut": result.get("cut"),
            "tokens cut away": result.get("removed_tokens"),
            "packed rows": rows if packed else None,
            "tokens": result.get("tokens"),
            "of these with a label": result.get("answer_tokens"),
            "held-out samples": result.get("held_out"),
        },
    }


def _conversion(content: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of a run of `segattn adapt` alone."""
    result, settings = content["result"], content.get("settings") or {}
    defaults = AdaptSettings().to_dict()
    changed = {name: value for name, value in settings.items() if name not in defaults or value != defaults[name]}
    words = [word for name, value in changed.items() for word in _adapt_flag(name, value)]
    return {
        "title": "Conversion without labels",
        "about": [_name(settings.get("model")), f"prompts: {_name(settings.get('prompts'))}"],
        "measure": "KL(teacher || student), nats per token",
        "what": "held-out KL per answer token",
        "command": shlex.join(["segattn", "adapt", *words]),
        "command_note": "",
        "settings": {name: _value(value) for name, value in changed.items()},
        "settings_caption": "Those that differ from the defaults; segattn adapt --help lists all.",
        "resume": "--resume",
        "data": {
            "prompts": result.get("prompts"),
            "prompts left out as too long": result.get("dropped"),
            "prompts that came before": result.get("repeated"),
            "answer tokens": result.get("answer_tokens"),
            "held-out prompts": len(next(iter((result.get("held_out") or {}).values()), [])),
            "bytes of the adapter": result.get("adapter_bytes"),
        },
        "agreement": _agreement(content.get("report")),
    }


def _adapt_flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag] if value else []
    return [flag, str(value)]


def _agreement(report: Mapping[str, Any] | None) -> dict[str, list[str]]:
    students: Mapping[str, Any] = (report or {}).get("students") or {}
    return {name: [interval_text(row.get(key)) for key in _MEASURES] for name, row in students.items()}


def _page(result: Mapping[str, Any], content: Mapping[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    from markupsafe import Markup

    losses, held_out, speed = _series(result)
    padding = [_number(one.get("padding_share")) for one in result.get("speed") or []]
    folder = str(result.get("output_dir") or ".")
    curves = svg(draw_training(losses, held_out, own["measure"]), "Losses against steps, in numbers below")
    rates = svg(draw_token_rates(speed), "Tokens per second against steps") if speed else ""
    data = {name: f"{value:,}" for name, value in own["data"].items() if value is not None}
    if padding:
        data["padding, share of all positions"] = f"{100 * statistics.fmean(padding):.1f} %"
    about = [part for part in own["about"] if part]
    about += [f"{_steps(result)} steps", str(content.get("finished") or "").replace("T", " ")]
    return {
        **own,
        "subtitle": ", ".join(part for part in about if part),
        "findings": _findings(result, losses, held_out, speed, own),
        "agreement": own.get("agreement"),
        "measures": list(_MEASURES.values()),
        "curves_picture": Markup(curves) if losses or held_out else "",
        "curves_caption": f"Training loss, and {own['what']} as the checkpoint is run; dotted: under other masks.",
        "curve_names": ["training", *held_out],
        "curve_rows": _curve_rows(losses, held_out),
        "speed_picture": Markup(rates),
        "data": data,
        "folder_text": json.dumps(folder),
        "chat": shlex.join(["segattn", "chat", "--model", folder]),
        "environment": content.get("environment") or {},
        "seconds": result.get("seconds") or {},
    }


def _series(
    result: Mapping[str, Any],
) -> tuple[list[tuple[int, float]], dict[str, list[tuple[int, float]]], list[tuple[int, float, float]]]:
    """What was logged: training losses, held-out losses by name, token rates."""
    losses = [(int(step), _number(loss)) for step, loss in result.get("train_losses") or []]
    speed = [
        (int(one["step"]), _number(one["tokens_per_second"]), _number(one["answer_tokens_per_second"]))
        for one in result.get("speed") or []
    ]
    return losses, _held_out(result.get("curve") or []), speed


def _held_out(curve: Sequence[Any]) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, loss), from points that are mappings (train) or pairs (adapt)."""
    points = [point if isinstance(point, Mapping) else {"step": point[0], "loss": point[1]} for point in curve]
    lines = {
        name: [(int(point["step"]), _number(point[key])) for point in points if point.get(key) is not None]
        for key, name in _HELD_OUT.items()
    }
    return {name: line for name, line in lines.items() if line}


def _findings(
    result: Mapping[str, Any],
    losses: Sequence[tuple[int, float]],
    every: Mapping[str, Sequence[tuple[int, float]]],
    speed: Sequence[tuple[int, float, float]],
    own: Mapping[str, Any],
) -> list[str]:
    lines, held_out = [], every.get(_HELD_OUT["loss"], [])
    if result.get("interrupted"):
        lines.append(f"Stopped early, after step {_steps(result)}; {own['resume']} goes on with the run.")
    if held_out:
        (first, before), (last, after) = held_out[0], held_out[-1]
        line = f"{own['what'][0].upper()}{own['what'][1:]}: {before:.4f} at step {first}"
        lines.append(f"{line}, {after:.4f} at step {last}." if last != first else f"{line}.")
        best, lowest = min(held_out, key=lambda point: point[1] if math.isfinite(point[1]) else math.inf)
        if best != last and math.isfinite(lowest):
            lines.append(f"The lowest was {lowest:.4f} at step {best}: what was saved is the model of the last step.")
    else:
        lines.append("No held-out data was scored.")
    broken = [step for step, loss in [*losses, *held_out] if not math.isfinite(loss)]
    if broken:
        lines.append(f"A loss was not a finite number, first at step {min(broken)}: do not trust this model.")
    if speed:
        tokens, answers = (statistics.median(rate[place] for rate in speed) for place in (1, 2))
        lines.append(f"Median {tokens:,.0f} tokens per second without padding, {answers:,.0f} of them of answers.")
    return lines


def _curve_rows(
    losses: Sequence[tuple[int, float]], held_out: Mapping[str, Sequence[tuple[int, float]]]
) -> list[dict[str, Any]]:
    """One row per step; of long runs evenly spaced ones, and all at which held-out data was scored."""
    columns = [dict(losses), *(dict(points) for points in held_out.values())]
    steps = sorted({step for column in columns for step in column})
    every = -(-len(steps) // _MOST_ROWS)
    scored = {step for column in columns[1:] for step in column}
    kept = [step for number, step in enumerate(steps) if number % every == 0 or step in scored]
    return [
        {"step": step, "losses": [f"{column[step]:.4f}" if step in column else "" for column in columns]}
        for step in kept
    ]


def _steps(result: Mapping[str, Any]) -> str:
    steps = result.get("steps")
    return "?" if steps is None else str(steps)


def _number(value: Any) -> float:
    """A number from JSON; what is missing is not a number."""
    return math.nan if value is None else float(value)


def _name(value: Any) -> str:
    """The last part of a path: a folder of this machine is nobody's business."""
    return Path(str(value)).name if value else ""


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
