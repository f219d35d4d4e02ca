"""From a quantised GGUF file to plain transformers files: safetensors weights, tokenizer, chat template.

The weights come out as bfloat16. They carry the 4-bit quantisation's error anyway (some percent of each weight);
rounding to bfloat16 adds 4e-5 to 6e-5 nats of divergence per token and leaves greedy answers as they are, while
float32 would take twice the disk (538 MB, not 269 MB). bfloat16 is also how the original is published.
"""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

from segattn.pretrained.errors import FetchError

__all__ = ["convert_smollm2"]


def convert_smollm2(gguf: Path, folder: Path) -> None:
    """Write the SmolLM2 of a GGUF file into `folder`, ready for transformers' `from_pretrained`.

    Args:
        gguf: the quantised file.
        folder: an existing folder to write into.

    Raises:
        FetchError: the `gguf` package is missing, or the file cannot be read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _progress_bars_only_on_terminals():
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
            )
        except ImportError as error:
            raise FetchError(
                f"reading {gguf.name} needs the gguf package ({error}); run: pip install 'segattn[cli]'"
            ) from error
        except Exception as error:
            raise FetchError(f"{gguf.name} cannot be read ({type(error).__name__}: {error}); fetch again") from error
        _mend_tokenizer(tokenizer, context=model.config.max_position_embeddings)
        _mend_model(model, tokenizer)
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # weights are written privately; a cache may be shared


def _mend_tokenizer(tokenizer: Any, context: int) -> None:
    """Give back what the GGUF form lost: digits one by one, and the context length."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    # GGUF names the splitting rule ("smollm") but transformers rebuilds plain GPT-2 splitting from it.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.model_max_length = context


def _mend_model(model: Any, tokenizer: Any) -> None:
    """Make it an ordinary unquantised model whose answers end at the chat's end marker."""
    # With these, save_pretrained would refuse: a GGUF model counts as quantised even after dequantising.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.name_or_path = ""
    model.config._model_name_or_path = ""
    # float32 in the file: 9.999999747378752e-06.
    model.config.rms_norm_eps = float(f"{model.config.rms_norm_eps:.6g}")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    if end is None or tokenizer.eos_token_id != end or not tokenizer.chat_template:
        raise FetchError(
            f"the GGUF file's tokenizer has end token {tokenizer.eos_token!r} and "
            f"{'a' if tokenizer.chat_template else 'no'} chat template; expected '<|im_end|>' and a template"
        )
    model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = tokenizer.pad_token_id


@contextmanager
def _progress_bars_only_on_terminals() -> Iterator[None]:
    # transformers draws these bars with or without its own switch; errors come as exceptions, not through stderr.
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
        yield
