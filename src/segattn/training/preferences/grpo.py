"""TRL's GRPOTrainer with segment prompts: answers are generated and scored under the same segments."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import grpo_trainer

from segattn.data import DataError
from segattn.errors import UnsupportedModelError
from segattn.modeling import enable, is_enabled
from segattn.modeling.segmentation_entry import CONFIG_KEY, read_segmentation
from segattn.segments import pad_segment_ids
from segattn.training.preferences.checks import check_options, copy_of, segmenter_to_train_with
from segattn.training.preferences.tokens import SegmentTokenizer

__all__ = ["SegmentGRPOTrainer"]


class SegmentGRPOTrainer(GRPOTrainer):
    """Tunes an enabled model by rewards of its own answers: prompts under their segments, answers causal.

    Prompts are lists of messages, tokenized by the model's segmenter. `generate` runs under the segments of the prompt,
    and so do all passes that score answers: of the policy, of what it was when it generated, and of the reference
    (`args.beta`). The segments are those of the prompt's tokens alone, whatever tokens an answer holds. Rewards,
    advantages, losses, metrics and saving are TRL's.

    The reference is the model without its adapter, a frozen copy of an adapter that is tuned further, or, where all
    weights are tuned, a copy of the model as it is handed over.

    Args:
        options: GRPOTrainer's own. `model` must be enabled; `processing_class` is the segmenter's tokenizer.

    Raises:
        UnsupportedModelError: a model that is not enabled; a reward model that was tuned under segments and is not
            enabled; generation outside of `model.generate` (`use_vllm`, continuous batching, `rollout_func`); tools and
            environments, whose results would be segments inside of an answer.
        SegmentError: a model without a segmenter.
        DataError: prompts of plain text, or with images (when they are drawn).
    """

    def __init__(self, **options: Any) -> None:
        model = options["model"]
        self._segmenter = segmenter_to_train_with(model)
        options["args"] = options.get("args") or GRPOConfig("trainer_output")
        check_options(options, self._segmenter)
        _check_generation(options)
        _check_rewards(options.get("reward_funcs"))
        with _reference_is_a_copy_of(model):
            super().__init__(**options)
        # TRL may have wrapped the model in an adapter: the wrapper must save the segmentation too.
        enable(self.model)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        tokenizer = SegmentTokenizer(self._segmenter)
        for prompt in prompts:
            if isinstance(prompt, str):
                tokenizer(prompt)
            if any(not isinstance(message["content"], str | None) for message in prompt):
                raise DataError("a prompt holds a message whose content is no text; expected text only")
        batch = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, **self.chat_template_kwargs)
        return batch["input_ids"], None, {}

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> Any:
        scored = self._under_prompt_segments(model, logits_to_keep)
        return super()._get_per_token_logps_and_entropies(
            scored, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )

    def _under_prompt_segments(self, model: Any, answer_length: int) -> Callable[..., Any]:
        """The model, called with the segments of the prompts: all but the last `answer_length` columns."""

        def run(*, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Any:
            # A marker that the policy sampled opens nothing: what it sampled was causal.
            prompt = slice(0, input_ids.shape[1] - answer_length)
            found = self._segmenter.segment_ids(input_ids[:, prompt], attention_mask[:, prompt])
            segment_ids = pad_segment_ids(found, input_ids.shape[1])
            return model(input_ids=input_ids, attention_mask=attention_mask, segment_ids=segment_ids, **inputs)

        return run


@contextmanager
def _reference_is_a_copy_of(model: Any) -> Iterator[None]:
    """Inside, TRL's reference of a fully tuned policy is a copy of it as it is now.

    TRL would load it by name, under an attention implementation that only enabled models have, and takes none from
    outside.
    """

    def copied(*args: Any, **kwargs: Any) -> Any:  # noqa: ARG001
        return copy_of(model)

    loader = grpo_trainer.create_model_from_path
    grpo_trainer.create_model_from_path = copied
    try:
        yield
    finally:
        grpo_trainer.create_model_from_path = loader


def _check_generation(options: dict[str, Any]) -> None:
    args = options["args"]
    refused = {
        "use_vllm": (
            args.use_vllm,
            "vLLM would generate under another mask than the one that answers are scored under",
        ),
        "use_transformers_continuous_batching": (
            args.use_transformers_continuous_batching,
            "paged attention builds no mask from segments",
        ),
        "rollout_func": (options.get("rollout_func"), "under which mask it generates is not known"),
        "tools": (options.get("tools"), "a tool's result would be a segment inside of an answer"),
        "environment_factory": (
            options.get("environment_factory"),
            "what an environment says would be a segment inside of an answer",
        ),
    }
    for name, (given, why) in refused.items():
        if given:
            raise UnsupportedModelError(f"{name} cannot be used here: {why}. Leave it out")


def _check_rewards(rewards: Any) -> None:
    """Refuse reward models that would be run causally although they were tuned under segments."""
    for reward in rewards if isinstance(rewards, list) else [rewards]:
        if isinstance(reward, str):
            tuned = read_segmentation(reward) is not None
        else:
            tuned = hasattr(getattr(reward, "config", None), CONFIG_KEY) and not is_enabled(reward)
        if tuned:
            raise UnsupportedModelError(
                f"the reward model {reward if isinstance(reward, str) else type(reward).__name__} was tuned under "
                "segments and would be run causally; load it and call segattn.enable(model, segmenter) first"
            )
