"""lm_eval's own command line, with the model `segattn` registered: what `segattn lm-eval` runs.

lm_eval 0.4.13 finds models in a table of its own and in what was registered by an import; it reads no entry points. So
something must import `segattn.harness` before its command line looks for the model.
"""

import sys
from collections.abc import Sequence

__all__ = ["run_harness", "with_model"]

_OTHER_COMMANDS = ("ls", "validate")


def run_harness(arguments: Sequence[str]) -> None:
    """Run lm_eval's command line; `--model segattn` is the default.

    Args:
        arguments: as after `lm_eval`.

    Raises:
        SegmentAttentionError: see `segattn.harness.SegmentLM`.
    """
    from lm_eval.__main__ import cli_evaluate

    import segattn.harness  # noqa: F401 (registers the model)

    before = sys.argv
    # It reads the arguments there and nowhere else.
    sys.argv = ["lm_eval", *with_model(arguments)]
    try:
        cli_evaluate()
    finally:
        sys.argv = before


def with_model(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `--model segattn` where they name no model: lm_eval's default would run causally."""
    given = list(arguments)
    if not given or given[0] in _OTHER_COMMANDS or given == ["run"] or {"-h", "--help"} & set(given):
        return given
    if any(word in ("--model", "-M") or word.startswith("--model=") for word in given):
        return given
    if _config_names_model(given):
        return given
    return [*given, "--model", "segattn"]


def _config_names_model(arguments: Sequence[str]) -> bool:
    from lm_eval.config.evaluate_config import EvaluatorConfig

    for place, word in enumerate(arguments):
        path = word.partition("=")[2] if word.startswith("--config=") else None
        if word in ("--config", "-C"):
            path = next(iter(arguments[place + 1 : place + 2]), None)
        if path:
            return "model" in EvaluatorConfig.load_yaml_config(path)
    return False
