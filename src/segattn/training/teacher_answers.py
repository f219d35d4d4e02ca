"""Answers that a model writes to encoded prompts, in batches, and a file that keeps them as they come."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from segattn.data import DataError, EncodedPrompt, pad_rows
from segattn.segments import CAUSAL

__all__ = ["AnswerFile", "end_tokens", "generate_answers", "prompt_key"]


def prompt_key(prompt: EncodedPrompt) -> str:
    """Return a short hash of a prompt's tokens and segments."""
    return hashlib.sha256(json.dumps([prompt.input_ids, prompt.segment_ids]).encode()).hexdigest()[:20]


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Return the ids that end an answer: those of the model's generation config, and the tokenizer's."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return {int(token) for token in (*ids, tokenizer.eos_token_id) if token is not None}


def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[EncodedPrompt],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[int]]:
    """Answer a batch of prompts under the mask and the adapter that are active.

    Args:
        model: enabled, in eval mode. Inside of `segattn.causal(model)` the segments do not count.
        tokenizer: its end token ends answers too.
        prompts: at least one; they are padded on the left.
        max_new_tokens: longer answers stop there, without an end marker.
        temperature: 0 takes the likeliest token each time.
        seed: of a sampled batch; the random state of the process stays as it was.

    Returns:
        Per prompt the tokens of its answer, the end marker included where it came.
    """
    ends = sorted(end_tokens(model, tokenizer))
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0] if ends else 0
    rows = [prompt.input_ids for prompt in prompts]
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=pad_rows(rows, fill, side="left").to(model.device),
            attention_mask=pad_rows([[1] * len(row) for row in rows], 0, side="left").to(model.device),
            segment_ids=pad_rows([prompt.segment_ids for prompt in prompts], CAUSAL, side="left").to(model.device),
            max_new_tokens=max_new_tokens,
            pad_token_id=fill,
            eos_token_id=ends or None,
            **sampling,
        )
    return [_until_end(row, ends) for row in output[:, max(map(len, rows)) :].tolist()]


def _until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    first = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: first + 1]


class AnswerFile:
    """Answers that are there already, and a place for more: one JSON line each, on disk as soon as it is made.

    Args:
        path: created if missing. A last line that a crash cut off is dropped.
        made_with: what decides the answers, as JSON types; a file made with something else is refused.

    Raises:
        DataError: the file was made with other settings, or is no file of answers.
    """

    def __init__(self, path: Path, made_with: Mapping[str, Any]) -> None:
        self.path = path
        self.answers: dict[str, list[int]] = {}
        wanted = json.loads(json.dumps(made_with))
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._lines() if path.exists() else []
        if not lines:
            self._append({"made_with": wanted})
            return
        try:
            found = json.loads(lines[0])["made_with"]
            rows = [json.loads(line) for line in lines[1:]]
            self.answers = {str(row["prompt"]): [int(token) for token in row["answer"]] for row in rows}
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is no file of answers ({error}); remove it, or name another folder") from error
        if found != wanted:
            names = sorted({*found, *wanted})
            differing = [
                f"{name}: {found.get(name)!r} there, {wanted.get(name)!r} now"
                for name in names
                if found.get(name) != wanted.get(name)
            ]
            raise DataError(
                f"{path} holds answers that were made otherwise ({'; '.join(differing)}); name another output_dir, or "
                "remove the file"
            )

    def _lines(self) -> list[str]:
        content = self.path.read_bytes()
        whole, newline, torn = content.rpartition(b"\n")
        if torn:
            os.truncate(self.path, len(whole) + len(newline))
        return whole.decode("utf-8").splitlines()

    def add(self, prompt: EncodedPrompt, answer: list[int], text: str) -> None:
        """Keep an answer; the text is for readers only."""
        self._append({"prompt": prompt_key(prompt), "answer": answer, "text": text})
        self.answers[prompt_key(prompt)] = answer

    def _append(self, row: Mapping[str, Any]) -> None:
        # One write of one whole line: a crash leaves all of it, or a tail without a line end.
        with self.path.open("ab", buffering=0) as file:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8"))
