"""Segments in LLaMA-Factory, which has no plugins: `python -m segattn.integrations.llama_factory train.yaml`."""

from typing import Any

from segattn.errors import UnsupportedModelError
from segattn.integrations.callback import SegmentAttentionCallback
from segattn.templates import Segmenter

__all__ = ["train"]


def train(args: Any = None, policy: str = "turns") -> None:
    """Run LLaMA-Factory's supervised training under the segment mask.

    The segments are those of the model's own chat template. LLaMA-Factory replaces the tokenizer's template by one
    without generation prompt, which does not tell where an answer's header begins.

    Args:
        args: what `llamafactory.train.tuner.run_exp` takes; by default it is read from the command line.
        policy: which messages are segments, see `segattn.Segmenter`.

    Raises:
        UnsupportedModelError: an option of LLaMA-Factory's under which the mask would be lost, or that is not verified.
        SegmentAttentionError: see `segattn.integrations.callback.SegmentAttentionCallback`.
    """
    from llamafactory.hparams import get_train_args, read_args
    from llamafactory.model import load_tokenizer
    from llamafactory.train.tuner import run_exp

    args = read_args(args)
    parsed = get_train_args(args)
    options = {name: value for part in parsed for name, value in vars(part).items()}
    for option, (accepted, why) in _ACCEPTED.items():
        given = options.get(option)
        if given is not None and given not in accepted:
            expected = f"expected {accepted[0]}" if accepted else "leave it out"
            raise UnsupportedModelError(f"{option}: {given} does not go with segment attention, for {why}; {expected}")
    segmenter = Segmenter.from_tokenizer(load_tokenizer(parsed[0])["tokenizer"], policy=policy)
    run_exp(args, callbacks=[SegmentAttentionCallback(segmenter)])


_OTHER_ENGINE = "it trains in another engine"

# Option -> its accepted values, and why no other is.
_ACCEPTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "stage": (("sft",), "the other stages are not verified"),
    "neat_packing": ((False,), "its prepared masks would replace the segment mask"),
    "packing": ((False,), "packed rows come with an attention mask under which documents see each other"),
    "train_on_prompt": ((False,), "labels inside of a segment are known to the tokens before them"),
    "streaming": ((False,), "the rows cannot be checked before training"),
    "use_unsloth": ((False,), "Unsloth replaces the attention of the model"),
    "shift_attn": ((False,), "it replaces the attention of the model"),
    "mixture_of_depths": ((), "it replaces the layers of the model"),
    "enable_liger_kernel": ((False,), "Liger kernels are not verified"),
    "use_mca": ((False,), _OTHER_ENGINE),
    "use_hyper_parallel": ((False,), _OTHER_ENGINE),
    "use_kt": ((False,), _OTHER_ENGINE),
}


if __name__ == "__main__":
    train()
