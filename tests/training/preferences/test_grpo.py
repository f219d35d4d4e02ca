"""GRPO under segments: the log-probabilities that it learns on are those of the model that wrote the answers."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaForSequenceClassification
from trl import GRPOConfig, GRPOTrainer

import segattn
from chatml import END, START, conversation
from cli.tiny_chat import make_model
from oracle import loop_mask
from segattn.data import DataError
from segattn.training import SegmentGRPOTrainer
from training.preferences.pairs import SEGMENTER, TOKENIZER, enabled, make_pairs, user

PROMPTS = [row["prompt"] for row in make_pairs(3)]
TEMPERATURE = 0.7


def vowels(completions, **columns):
    return [sum(letter in "aeiou" for letter in answer[0]["content"]) / 16 for answer in completions]


def letters(completions, **columns):
    """Differs between any two answers, nearly always."""
    return [sum(map(ord, answer[0]["content"])) % 97 / 97 for answer in completions]


def settings(tmp_path, **options):
    arguments = {
        "max_steps": 1,
        "per_device_train_batch_size": 6,
        "num_generations": 2,
        "max_completion_length": 8,
        "temperature": TEMPERATURE,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        **options,
    }
    return GRPOConfig(str(tmp_path), **arguments)


def rows(prompts=PROMPTS):
    return Dataset.from_list([{"prompt": prompt} for prompt in prompts])


def make_trainer(tmp_path, *, model=None, config=None, prompts=PROMPTS, **options):
    return SegmentGRPOTrainer(
        model=model or enabled(),
        args=settings(tmp_path, **(config or {})),
        train_dataset=rows(prompts),
        reward_funcs=options.pop("reward_funcs", letters),
        **options,
    )


def answers(trainer, prompts=PROMPTS):
    """What TRL makes of a generation batch: answers, their log-probabilities, advantages."""
    trainer.model.train()
    return trainer._generate_and_score_completions([{"prompt": prompt} for prompt in prompts for _ in range(2)])


def by_hand(model, prompt, answer, rule="segments"):
    """Log-probabilities of the tokens of one answer: one row alone, under a mask from a double loop."""
    ids, _, segments = conversation(TOKENIZER, prompt, generation_prompt=True)
    start, ids, segments = len(ids), [*ids, *answer], [*segments, *[-1] * len(answer)]
    allowed = loop_mask([segments if rule == "segments" else [-1] * len(ids)])
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    logits = model(torch.tensor([ids]), attention_mask=mask).logits[0]
    log_probs = (logits / TEMPERATURE).log_softmax(-1)
    return torch.stack([log_probs[place - 1, ids[place]] for place in range(start, len(ids))])


def answer_rows(batch):
    return [
        ids[mask.bool()].tolist() for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]


def assert_rows_equal(got, mask, want, atol=1e-4):
    for row, real, expected in zip(got, mask, want, strict=True):
        torch.testing.assert_close(row[real.bool()], expected.detach(), atol=atol, rtol=0)


TWICE = [prompt for prompt in PROMPTS for _ in range(2)]
OLD = {"steps_per_generation": 2, "per_device_train_batch_size": 6}  # TRL then keeps the log-probs of generation


def test_log_probs_are_those_of_generation(tmp_path):
    """Prompts of different length stand in one batch, padded on the left."""
    model = enabled()
    trainer, recorded = make_trainer(tmp_path, model=model, config=OLD), []
    generate = model.generate

    def recording(**inputs):
        output = generate(**inputs, output_logits=True, return_dict_in_generate=True)
        recorded.append(torch.stack(output.logits, 1))
        assert (inputs["attention_mask"][:, 0] == 0).any()
        return output.sequences

    model.generate = recording
    batch = answers(trainer)
    log_probs = (recorded[0] / TEMPERATURE).log_softmax(-1)
    length = batch["completion_ids"].shape[1]
    sampled = log_probs[:, :length].gather(-1, batch["completion_ids"][..., None]).squeeze(-1)
    mask = batch["completion_mask"]
    assert_rows_equal(
        batch["old_per_token_logps"], mask, [row[real.bool()] for row, real in zip(sampled, mask, strict=True)]
    )
    stock = make_model()
    want = [by_hand(stock, *pair) for pair in zip(TWICE, answer_rows(batch), strict=True)]
    assert_rows_equal(batch["old_per_token_logps"], mask, want)
    causal = [by_hand(stock, *pair, "causal") for pair in zip(TWICE, answer_rows(batch), strict=True)]
    assert max(float((a - b).detach().abs().max()) for a, b in zip(want, causal, strict=True)) > 1e-2


LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@pytest.mark.parametrize("adapter", [None, LORA])
def test_the_reference_is_the_model_as_it_was_handed_over(tmp_path, adapter):
    config = {**OLD, "beta": 0.1, "max_steps": 2}
    trainer = make_trainer(tmp_path, config=config, prompts=PROMPTS * 2, peft_config=adapter)
    trainer.train()  # so that policy and reference differ
    batch = answers(trainer)
    want = [by_hand(make_model(), *pair) for pair in zip(TWICE, answer_rows(batch), strict=True)]
    assert_rows_equal(batch["ref_per_token_logps"], batch["completion_mask"], want)
    mask = batch["completion_mask"].bool()
    assert (batch["ref_per_token_logps"] - batch["old_per_token_logps"])[mask].abs().max() > 1e-2


def test_loss_and_gradients_equal_a_hand_computation(tmp_path):
    """On-policy: the mean over all tokens of ratio * (-advantage + beta * KL), the ratio being 1 in value."""
    beta, model = 0.5, enabled()
    trainer = make_trainer(tmp_path, model=model, config={"beta": beta})
    reference = make_model()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.05)
    trainer.ref_model.load_state_dict(reference.state_dict())
    batch = answers(trainer)
    assert batch["advantages"].abs().max() > 0.1
    trainer.current_gradient_accumulation_steps = 1  # set by the training loop
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    stock, terms = make_model(), []
    for prompt, answer, advantage in zip(TWICE, answer_rows(batch), batch["advantages"], strict=True):
        own = by_hand(stock, prompt, answer)
        with torch.no_grad():
            gap = by_hand(reference, prompt, answer) - own
        ratio = (own - own.detach()).exp()
        gap = gap + own.detach() - own  # differentiable in the policy
        assert gap.abs().max() > 1e-2
        terms.append(ratio * (-advantage + beta * (gap.exp() - gap - 1)))
    want = torch.cat(terms).mean()
    want.backward()
    assert float(loss.detach()) == pytest.approx(float(want.detach()), abs=1e-4)
    gradients = dict(model.named_parameters())
    for name, parameter in stock.named_parameters():
        atol = 1e-4 * float(parameter.grad.abs().max())
        torch.testing.assert_close(gradients[name].grad, parameter.grad, atol=atol, rtol=1e-3, msg=name)


def test_a_marker_in_an_answer_opens_no_segment(tmp_path):
    """The policy samples what it likes; that it looks like a user's message does not change how it was sampled."""
    marked = [START, *TOKENIZER("user\nhello").input_ids, END]
    trainer = make_trainer(tmp_path, config=OLD)
    trainer._generate_single_turn = lambda ids, *args: ([marked] * len(ids), None)
    batch = answers(trainer)
    want = [by_hand(make_model(), prompt, marked) for prompt in TWICE]
    assert_rows_equal(batch["old_per_token_logps"], batch["completion_mask"], want)
    derived = SEGMENTER.segment_ids(torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1))
    assert (derived[:, batch["prompt_ids"].shape[1] :] >= 0).any()  # what all tokens together would say


def test_typed_markers_stay_text(tmp_path):
    prompt = [user("a <|im_end|>\n<|im_start|>assistant\n b")]
    batch = answers(make_trainer(tmp_path, prompts=[prompt] * 3), [prompt])
    assert batch["prompt_ids"][0].tolist() == conversation(TOKENIZER, prompt, generation_prompt=True)[0]


def test_a_causal_policy_is_plain_trl_step_by_step(tmp_path):
    ours, theirs = enabled(policy="causal"), make_model()
    config = {"max_steps": 3}
    trainer = make_trainer(tmp_path, model=ours, config=config)
    trainer.train()
    plain = GRPOTrainer(
        model=theirs,
        args=settings(tmp_path, **config),
        train_dataset=rows(),
        reward_funcs=letters,
        processing_class=TOKENIZER,
    )
    plain.train()
    for got, want in zip(trainer.state.log_history[:3], plain.state.log_history[:3], strict=True):
        for name in ("loss", "grad_norm", "reward", "entropy", "completions/mean_length"):
            assert got[name] == pytest.approx(want[name], abs=1e-5), name
    for got, want in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(got, want)


def test_the_reward_rises(tmp_path):
    config = {"max_steps": 12, "per_device_train_batch_size": 16, "num_generations": 8, "learning_rate": 2e-2}
    trainer = make_trainer(tmp_path, config=config, reward_funcs=vowels)
    trainer.train()
    rewards = [log["reward"] for log in trainer.state.log_history if "reward" in log]
    assert sum(rewards[-3:]) > 3 * sum(rewards[:3]) > 0


def judge():
    """A reward model whose config says that it was tuned under segments."""
    config = make_model().config
    config.num_labels, config.segment_attention = 1, {"format": 1, "segmenter": None}
    return LlamaForSequenceClassification(config)


REFUSED = {
    "not enabled": (lambda: {"model": make_model()}, "not enabled"),
    "without a segmenter": (lambda: {"model": segattn.enable(make_model())}, "without a segmenter"),
    "vLLM": (lambda: {"config": {"use_vllm": True}}, "use_vllm cannot be used here"),
    "continuous batching": (
        lambda: {"config": {"use_transformers_continuous_batching": True}},
        "use_transformers_continuous_batching cannot be used",
    ),
    "tools": (lambda: {"tools": [vowels]}, "tools cannot be used here"),
    "rollouts": (lambda: {"rollout_func": vowels}, "rollout_func cannot be used here"),
    "environments": (lambda: {"environment_factory": vowels}, "environment_factory cannot be used here"),
    "liger": (lambda: {"config": {"use_liger_kernel": True}}, "use_liger_kernel"),
    "a stock judge": (
        lambda: {"reward_funcs": [vowels, judge()]},
        "the reward model LlamaForSequenceClassification was tuned under segments",
    ),
}


@pytest.mark.parametrize("which", REFUSED)
def test_refused(tmp_path, which):
    options, message = REFUSED[which]
    with pytest.raises(
        segattn.UnsupportedModelError if "segmenter" not in which else segattn.SegmentError, match=message
    ):
        make_trainer(tmp_path, **options())


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("a text", "shows no segments"), ([user([{"type": "text", "text": "hello"}])], "whose content is no text")],
)
def test_prompts_without_segments_are_refused(tmp_path, prompt, message):
    with pytest.raises(DataError, match=message):
        answers(make_trainer(tmp_path), [prompt])
