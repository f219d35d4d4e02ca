"""What `segattn doctor MODEL` does: load a model, probe it at full length, and say what each kind of layer does."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from segattn.cli.loading import AnswerError
from segattn.errors import UnsupportedModelError

__all__ = ["ModelCheck", "check_model"]

_SHORTEST, _LONGEST = 10, 2048


@dataclass(frozen=True)
class ModelCheck:
    """The verdict on one model.

    Attributes:
        model: class name.
        implementation: the attention implementation that was probed.
        length: of the text, in tokens.
        status: "exact", "partial" or "refused".
        reason: empty for an exact model.
        layers: (name, "segments" | "recurrent" | "both" | "wrong", reason) of each layer.
        seconds: that the probe took.
    """

    model: str
    implementation: str
    length: int
    status: str
    reason: str
    layers: tuple[tuple[str, str, str], ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the verdict as lines for a terminal."""
        kinds = {"segments": "follow segments", "recurrent": "cannot (recurrent)", "both": "follow, in part recurrent"}
        counts = {kind: sum(layer[1] == kind for layer in self.layers) for kind in (*kinds, "wrong")}
        found = [f"{count} {kinds.get(kind, 'do not follow segments')}" for kind, count in counts.items() if count]
        advice = {
            "exact": "segattn.enable(model) works",
            "partial": "segattn.enable(model, allow_partial=True) if that is what you want",
            "refused": "segattn.enable(model) refuses it; train and run it causally, or with another attention backend",
        }[self.status]
        return [
            f"{self.model} under {self.implementation}, {self.length} tokens, {self.seconds:.1f} s",
            f"layers: {', '.join(found) or 'none could be read'}",
            *(f"  {name}: {reason}" for name, kind, reason in self.layers if kind == "wrong"),
            f"verdict: {self.status}{': ' + self.reason if self.reason else ''}",
            f"         -> {advice}",
        ]


def check_model(name: str, length: int | None, implementation: str | None) -> ModelCheck:
    """Load a model and probe it.

    Args:
        name: a folder, a hub id, or "smollm2"; a base model or an adapter.
        length: of the text; None for one that is longer than the model's attention window, up to 2,048 tokens.
        implementation: "sdpa", "eager" or "flex_attention"; None for the model's own choice.

    Raises:
        AnswerError: the model cannot be loaded, or the length does not suit it.
    """
    from segattn.modeling import probe

    model = _load(name, implementation)
    tokens = _length(model, length)
    start = time.perf_counter()
    chosen = model.config.get_text_config(decoder=True)._attn_implementation
    try:
        verdict = probe(model, tokens)
        status, reason, layers = verdict.status, verdict.reason, verdict.layers
    except UnsupportedModelError as error:
        status, reason, layers = "refused", str(error), ()
    return ModelCheck(
        model=type(model).__name__,
        implementation=chosen,
        length=tokens,
        status=status,
        reason=reason,
        layers=tuple((layer.name, layer.kind, layer.reason) for layer in layers),
        seconds=time.perf_counter() - start,
    )


def _load(name: str, implementation: str | None) -> Any:
    from transformers import AutoModelForCausalLM

    from segattn.pretrained import resolve_model

    chosen = {} if implementation is None else {"attn_implementation": implementation}
    try:
        return AutoModelForCausalLM.from_pretrained(resolve_model(name), dtype="auto", **chosen).eval()
    except (OSError, ValueError, ImportError) as error:
        raise AnswerError(
            f"{name} cannot be loaded ({error}); expected a folder of transformers or PEFT files, or a hub id that can "
            "be reached (`segattn doctor` without a model tells)"
        ) from error


def _length(model: Any, wanted: int | None) -> int:
    config = model.config.get_text_config(decoder=True)
    most = int(getattr(config, "max_position_embeddings", None) or _LONGEST)
    if wanted is None:
        local = [getattr(config, name, None) or 0 for name in ("sliding_window", "attention_chunk_size")]
        return min(max(64, 2 * max(local) + 8), most, _LONGEST)
    if not _SHORTEST <= wanted <= most:
        raise AnswerError(f"--length is {wanted}; expected {_SHORTEST} to {most}, what this model can hold")
    return wanted
