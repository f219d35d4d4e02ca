"""Judge a model by what its layers were seen to do: exact, partial or refused, with the layer's name and the reason."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from segattn.errors import SegmentAttentionError, UnsupportedModelError
from segattn.modeling.probe import Layer, Reading, decoder_layers, evaluating, read_layers

__all__ = ["LayerVerdict", "ProbeInput", "Verdict", "causal_output", "judge", "probe_input"]

Status = Literal["exact", "partial", "refused"]
Readings = dict[str, list[Reading]]

_ATTEMPTS = 3

# Parts whose state runs from left to right, so that no mask reaches them. GPT-2's "Conv1D" is a linear layer.
_RECURRENT = re.compile(
    r"Mamba|DeltaNet|DeltaAttention|LinearAttn|LinearAttention|LightningAttention|RecurrentBlock|RecurrentGemma|RgLru"
    r"|ShortConv|Rwkv|xLSTM|mLSTM|sLSTM|SSM|StateSpace|TimeMix"
)
_ATTENTION = re.compile(r"Attention|Attn")


@dataclass(frozen=True)
class LayerVerdict:
    """What was found of one layer: "segments" (follows them), "recurrent" (cannot), or "wrong"; and why."""

    name: str
    kind: Literal["segments", "recurrent", "both", "wrong"]
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    """What was found of a model.

    Attributes:
        status: "exact": every layer follows the rule; "partial": attention layers do, recurrent parts cannot;
            "refused".
        reason: for a person; empty for an exact model.
        layers: in the model's order.
    """

    status: Status
    reason: str
    layers: tuple[LayerVerdict, ...]


@dataclass(frozen=True)
class ProbeInput:
    """The sequence of a probe: tokens (1, n), segment ids (1, n), and the positions to change."""

    input_ids: Tensor
    segment_ids: Tensor
    columns: list[int]


def probe_input(model: Any, length: int = 10) -> ProbeInput:
    """Make a sequence of a causal token, two segments and a causal tail, of ordinary tokens of the model.

    Args:
        model: a transformers model.
        length: at least 6. From 16 tokens on, only positions near the borders and the middle of segments are changed.

    Returns:
        tensors on the model's device.
    """
    config = model.config.get_text_config(decoder=True)
    special = {
        value for name, value in config.to_dict().items() if name.endswith("token_id") and isinstance(value, int)
    }
    special |= {
        value for name, value in model.config.to_dict().items() if name.endswith("_id") and isinstance(value, int)
    }
    vocabulary = min(int(getattr(config, "vocab_size", 64)), 5000)
    ordinary = [token for token in range(vocabulary // 8, vocabulary) if token not in special]
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(0, len(ordinary), (length,), generator=generator).tolist()
    device = model.device if model.device.type != "meta" else torch.device("cpu")  # offloaded weights are on meta
    first, second = 1 + (length - 2) // 2, length - 2
    segments = [-1] + [0] * (first - 1) + [1] * (second - first) + [-1] * (length - second)
    columns = list(range(length))
    if length > 16:
        middle = (1 + first) // 2
        columns = sorted({0, 1, 2, middle, first - 2, first - 1, first, first + 1, second - 1, second, length - 1})
    return ProbeInput(
        torch.tensor([[ordinary[index] for index in chosen]], device=device),
        torch.tensor([segments], device=device),
        columns,
    )


@torch.no_grad()
def causal_output(model: Any, given: ProbeInput, **inputs: Tensor) -> Tensor:
    """Return what the model computes for the probe's tokens, (1, n, ...) in float32."""
    with evaluating(model):
        return _output(model, given.input_ids, **inputs)


def _output(model: Any, input_ids: Tensor, **inputs: Tensor) -> Tensor:
    output = model(input_ids=input_ids, use_cache=False, **inputs)
    result: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return result.float()


def judge(
    model: Any, stock_output: Tensor, given: ProbeInput, segment_layers: Collection[int] | None = None
) -> Verdict:
    """Probe an enabled model.

    Args:
        model: enabled.
        stock_output: `causal_output` of the same model before it was enabled.
        given: the sequence.
        segment_layers: the layers that are to follow segments, the others running causally; None for all.
    """
    layers: list[Layer] = []
    try:
        layers = decoder_layers(model)
        causal_ids = torch.full_like(given.segment_ids, -1)
        ids_of_layers = [
            given.segment_ids if segment_layers is None or number in segment_layers else causal_ids
            for number in range(len(layers))
        ]
        with_segments: Readings = {}
        without: Readings = {}
        for seed in range(_ATTEMPTS):
            # Segments first, then none: a mask that a model keeps from an earlier call shows either way.
            for found, row in ((with_segments, given.segment_ids), (without, causal_ids)):
                _add(found, read_layers(model, layers, given.input_ids, given.columns, seed, segment_ids=row))
            verdicts = tuple(
                _judge_layer(layer, with_segments.get(layer.name, []), without.get(layer.name, []), ids)
                for layer, ids in zip(layers, ids_of_layers, strict=True)
            )
            verdict = _summed_up(verdicts)
            if verdict.status != "refused":
                break
        else:
            return verdict
        problem = _causal_difference(model, stock_output, given) or _flow_back(model, given)
        return verdict if problem is None else Verdict("refused", problem, verdicts)
    except UnsupportedModelError as error:
        return Verdict("refused", _without_attention(layers) or str(error), ())
    except SegmentAttentionError:
        raise
    except Exception as error:  # a foreign model raises whatever it likes
        return Verdict("refused", f"the model cannot be run on a short text ({type(error).__name__}: {error})", ())


def _add(found: Readings, more: Readings) -> None:
    """Join what further numbers showed: a token that gets next to no attention under some shows under others."""
    for name, readings in more.items():
        earlier = found.setdefault(name, readings)
        if earlier is not readings and len(earlier) == len(readings):
            found[name] = [
                Reading(old.sees | new.sees, old.columns) for old, new in zip(earlier, readings, strict=True)
            ]


def _judge_layer(layer: Layer, segments: list[Reading], causal: list[Reading], ids: Tensor) -> LayerVerdict:
    if not segments or len(segments) != len(causal):
        return LayerVerdict(layer.name, "wrong", "it did not run, so what it sees cannot be read")
    recurrent, attention = _parts(layer.module)
    kind: Literal["segments", "both"] = "both" if recurrent else "segments"
    for reading, stock in zip(segments, causal, strict=True):
        problem = _ahead(stock) or _mismatch(reading, stock, ids[0].cpu())
        if problem is None:
            continue
        # A parallel hybrid holds attention too: there a missing mask is a fault.
        if recurrent and not attention and torch.equal(reading.sees, stock.sees):
            return LayerVerdict(layer.name, "recurrent", f"{recurrent} runs from left to right")
        return LayerVerdict(layer.name, "wrong", problem)
    return LayerVerdict(layer.name, kind, f"{recurrent} in it runs from left to right" if recurrent else "")


def _without_attention(layers: list[Layer]) -> str | None:
    """What to say of a model in which no layer asks for a mask, as none has attention."""
    parts = [_parts(layer.module) for layer in layers]
    if not parts or any(attention or not recurrent for recurrent, attention in parts):
        return None
    return f"it has no attention that a mask could reach: {parts[0][0]} runs from left to right"


def _parts(layer: nn.Module) -> tuple[str, bool]:
    """Return the class name of a recurrent part ("" for none), and whether there is an attention part."""
    names = [type(module).__name__ for module in layer.modules()]
    recurrent = next((name for name in names if _RECURRENT.search(name)), "")
    if not recurrent and any(isinstance(module, nn.Conv1d) for module in layer.modules()):
        recurrent = "a convolution"
    return recurrent, any(_ATTENTION.search(name) and not _RECURRENT.search(name) for name in names)


def _ahead(stock: Reading) -> str | None:
    """A causal pass in which a token sees a later one is not what this model's stock class does."""
    for place, column in enumerate(stock.columns):
        seen_by = stock.sees[:column, place].nonzero()
        if len(seen_by):
            return f"with all ids -1, token {int(seen_by[0])} sees token {column}, which comes later"
    return None


def _mismatch(reading: Reading, stock: Reading, ids: Tensor) -> str | None:
    """The first place at which a layer sees other tokens than the rule says, None if there is none."""
    place = {column: index for index, column in enumerate(reading.columns)}
    for column in reading.columns:
        seen, behind = reading.sees[:, place[column]], stock.sees[:, place[column]]
        for token in range(len(seen)):
            if token >= column:
                expected = bool(behind[token])
            elif ids[token] < 0 or ids[token] != ids[column]:
                expected = False
            elif token in place:
                expected = bool(stock.sees[column, place[token]])  # local layers: as far as they see backward
            else:
                continue
            if bool(seen[token]) != expected:
                return _described(token, column, expected, ids, bool(torch.equal(reading.sees, stock.sees)))
    return None


def _described(token: int, column: int, expected: bool, ids: Tensor, runs_causally: bool) -> str:
    if runs_causally:
        return "the segment mask did not arrive: the layer runs causally"
    relation = "of its own segment" if ids[token] >= 0 and ids[token] == ids[column] else "outside of its segment"
    if expected:
        return f"token {token} does not see token {column} {relation}, which the rule lets it see"
    return f"token {token} sees token {column} {relation}, which the rule forbids"


def _summed_up(layers: tuple[LayerVerdict, ...]) -> Verdict:
    wrong = [layer for layer in layers if layer.kind == "wrong"]
    if wrong:
        others = f" (and {len(wrong) - 1} more layers)" if len(wrong) > 1 else ""
        return Verdict("refused", f"{wrong[0].name}: {wrong[0].reason}{others}", layers)
    hybrid = [layer for layer in layers if layer.kind != "segments"]
    if not hybrid:
        return Verdict("exact", "", layers)
    if all(layer.kind == "recurrent" for layer in layers):
        return Verdict("refused", f"it has no attention that a mask could reach: {hybrid[0].reason}", layers)
    text = f"{len(hybrid)} of {len(layers)} layers cannot follow segments: in {hybrid[0].name}, {hybrid[0].reason}"
    return Verdict("partial", text, layers)


def _causal_difference(model: Any, stock_output: Tensor, given: ProbeInput) -> str | None:
    enabled = causal_output(model, given, segment_ids=torch.full_like(given.segment_ids, -1))
    difference = float((enabled - stock_output).abs().max())
    if difference <= _tolerance(model, stock_output):
        return None
    return f"with all ids -1 its output differs from the stock model's by {difference:.2g}"


@torch.no_grad()
def _flow_back(model: Any, given: ProbeInput) -> str | None:
    """Whether anything outside of the layers carries a token back across a segment border."""
    ids = given.segment_ids[0].tolist()
    changed = given.input_ids.repeat(len(given.columns) + 1, 1)
    for row, column in enumerate(given.columns):
        other = next(token for token in given.input_ids[0] if token != given.input_ids[0, column])
        changed[row, column] = other
    with evaluating(model):
        segment_ids = given.segment_ids.repeat(len(changed), 1)
        output = _output(model, changed, segment_ids=segment_ids)
        if output.ndim < 3:
            # A classifier's head tells of whole sequences: look at the states below it.
            output = _output(model.base_model, changed, segment_ids=segment_ids)
    difference, tolerance = (output[:-1] - output[-1]).abs().flatten(2).amax(-1), _tolerance(model, output)
    for row, column in enumerate(given.columns):
        for token in range(column):
            if (ids[token] < 0 or ids[token] != ids[column]) and difference[row, token] > tolerance:
                return f"the output at token {token} depends on token {column}, later and outside of its segment"
    return None


def _tolerance(model: Any, output: Tensor) -> float:
    """How far equal computations may differ: some last digits of the largest value."""
    return max(1e-5, 4 * torch.finfo(model.dtype).eps) * max(float(output.abs().max()), 1.0)
