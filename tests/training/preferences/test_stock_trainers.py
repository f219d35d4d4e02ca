"""An enabled model under TRL's own trainers, which know nothing of segments: right segments, or an error."""

import importlib

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaForCausalLM, LlamaForSequenceClassification
from trl import RewardConfig, RewardTrainer

import segattn
from chatml import END, START
from cli.tiny_chat import make_model
from oracle import loop_mask
from training.preferences.pairs import SEGMENTER, TOKENIZER, make_pairs, segments_by_markers

PAIRS = make_pairs(4)
LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


class Passes:
    """Watches every pass of more than one token through a model: were the masks of its layers those of the rule?"""

    def __init__(self, model):
        self.seen, self.rows_with_segments = 0, 0
        model.model.register_forward_pre_hook(self.begin, with_kwargs=True)
        for layer in model.model.layers:
            layer.register_forward_pre_hook(self.check, with_kwargs=True)

    def begin(self, module, args, kwargs):
        self.ids, self.padding = args[0] if args else kwargs["input_ids"], kwargs.get("attention_mask")

    def check(self, module, args, kwargs):
        if self.ids.shape[1] == 1:
            return
        mask, self.seen = kwargs["attention_mask"], self.seen + 1
        for number, ids in enumerate(self.ids):
            real = torch.ones_like(ids).bool() if self.padding is None else self.padding[number].bool()
            segments = segments_by_markers(ids[real].tolist())
            self.rows_with_segments += max(segments) >= 0
            want = loop_mask([segments])[0, 0]
            length = len(segments)
            got = torch.ones(length, length).bool().tril() if mask is None else mask[number, 0][real][:, real]
            assert torch.equal(got if got.dtype == torch.bool else got == 0, want)


def shared(tmp_path, config, **options):
    arguments = {
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    return config(str(tmp_path), **{**arguments, **options})


def rewarded(completions, **columns):
    return [float(len(str(answer))) for answer in completions]


def prompts():
    return [{"prompt": row["prompt"]} for row in PAIRS]


def labelled():
    return [{"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
            for row in PAIRS for name in ("chosen", "rejected")]  # fmt: skip


def answered():
    return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]


def chats():
    return [{"messages": [*row["prompt"], *row["chosen"]]} for row in PAIRS]


SAMPLED = {"num_generations": 2, "max_completion_length": 6}
# Trainer -> where it lies, its rows, its settings, its arguments.
TRAINERS = {
    "SFT": ("trl", answered, {}, {}),
    "DPO": ("trl", lambda: PAIRS, {}, {}),
    "KTO": ("trl", labelled, {}, {}),
    "GRPO": ("trl", prompts, {**SAMPLED, "beta": 0.1}, {"reward_funcs": rewarded}),
    "RLOO": ("trl", prompts, {**SAMPLED, "beta": 0.1}, {"reward_funcs": rewarded}),
    "CPO": ("trl.experimental.cpo", lambda: PAIRS, {}, {}),
    "ORPO": ("trl.experimental.orpo", lambda: PAIRS, {}, {}),
    "GKD": ("trl.experimental.gkd", chats, {"max_new_tokens": 6, "lmbda": 1.0}, {"teacher_model": None}),
    "OnlineDPO": ("trl.experimental.online_dpo", prompts, {"max_new_tokens": 6}, {"reward_funcs": rewarded}),
}  # fmt: skip


def stock_trainer(name, tmp_path, model, peft_config=LORA, rows=None):
    place, make_rows, config, options = TRAINERS[name]
    module, options = importlib.import_module(place), dict(options)
    if "teacher_model" in options:
        options["teacher_model"] = segattn.enable(make_model(1), SEGMENTER, backend="dense")
    return getattr(module, f"{name}Trainer")(
        model=model,
        args=shared(tmp_path, getattr(module, f"{name}Config"), **config),
        train_dataset=Dataset.from_list(rows or make_rows()),
        processing_class=TOKENIZER,
        peft_config=peft_config,
        **options,
    )


OFTEN = ("SFT", "DPO", "KTO", "GRPO")


@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in TRAINERS]
)
@pytest.mark.filterwarnings("ignore")
def test_segments_are_derived_in_every_pass(name, tmp_path):
    model = segattn.enable(make_model(), SEGMENTER, backend="dense")
    passes = Passes(model)
    stock_trainer(name, tmp_path, model).train()
    assert passes.seen >= 2
    assert passes.rows_with_segments >= 4 * passes.seen


@pytest.mark.parametrize(
    "name", ["DPO", "GRPO", *(pytest.param(name, marks=pytest.mark.slow) for name in ("KTO", "RLOO"))]
)
def test_the_reference_of_a_fully_tuned_policy_is_no_silent_causal_one(name, tmp_path):
    make_model().save_pretrained(tmp_path / "base")
    model = segattn.enable(LlamaForCausalLM.from_pretrained(tmp_path / "base"), SEGMENTER)
    with pytest.raises(segattn.UnsupportedModelError, match="outside of the enabled model"):
        stock_trainer(name, tmp_path, model, peft_config=None).train()


@pytest.mark.parametrize("name", ["GRPO", pytest.param("RLOO", marks=pytest.mark.slow)])
def test_a_sampled_marker_stops_a_stock_trainer(name, tmp_path):
    """All tokens together would say that the answer holds a segment, which it was not when it was sampled."""
    model = segattn.enable(make_model(), SEGMENTER)
    trainer = stock_trainer(name, tmp_path, model)
    marked = [START, *TOKENIZER("user\nhello").input_ids, END]
    single_turn = trainer._generate_single_turn

    def sampled(ids, *args, **kwargs):
        result = single_turn(ids, *args, **kwargs)
        answers = [marked] * len(ids)
        return (answers, *result[1:]) if isinstance(result, tuple) else answers

    trainer._generate_single_turn = sampled
    with pytest.raises(segattn.LabelLeakError):
        trainer.train()


@pytest.mark.filterwarnings("ignore")
def test_stock_sft_is_stopped_where_it_labels_prompts(tmp_path):
    trainer = stock_trainer("SFT", tmp_path, segattn.enable(make_model(), SEGMENTER), rows=chats())
    with pytest.raises(segattn.LabelLeakError):
        trainer.train()


def test_stock_reward_trainer_derives_them_too(tmp_path):
    config = make_model().config
    config.num_labels = 1
    model = segattn.enable(LlamaForSequenceClassification(config), SEGMENTER, backend="dense")
    passes = Passes(model)
    RewardTrainer(
        model=model,
        args=shared(tmp_path, RewardConfig),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=TOKENIZER,
    ).train()
    assert passes.rows_with_segments >= 8


@pytest.mark.parametrize("name", ["SFT", "DPO", "GRPO"])
@pytest.mark.filterwarnings("ignore")
def test_without_a_segmenter_nothing_runs_causally(name, tmp_path):
    with pytest.raises(segattn.SegmentError, match="segment_ids"):
        stock_trainer(name, tmp_path, segattn.enable(make_model())).train()
