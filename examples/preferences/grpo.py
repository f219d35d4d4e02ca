"""Tune a chat model by a reward of its own answers, under segments: here, for answers of about ten words.

python examples/preferences/grpo.py --model smollm2 --steps 20 --output-dir runs/grpo
"""

import argparse
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

import segattn
from segattn.pretrained import resolve_model
from segattn.training import SegmentGRPOTrainer

QUESTIONS = ("What is rain?", "Why do birds sing?", "What is bread made of?", "Who builds bridges?")


def ten_words(completions: list[list[dict[str, str]]], **columns: Any) -> list[float]:  # noqa: ARG001
    return [-abs(len(answer[0]["content"].split()) - 10) / 10 for answer in completions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a folder, a hub id, or smollm2 (the default)")
    parser.add_argument("--output-dir", default="runs/grpo", help="where the adapter goes (runs/grpo)")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps (20)")
    parser.add_argument("--beta", type=float, default=0.0, help="the weight of the KL term to the reference (0)")
    options = parser.parse_args()

    path = resolve_model(options.model)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    segattn.enable(model, segattn.Segmenter.from_tokenizer(tokenizer))
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    trainer = SegmentGRPOTrainer(
        model=model,
        reward_funcs=ten_words,
        args=GRPOConfig(
            options.output_dir,
            max_steps=options.steps,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=48,
            beta=options.beta,
            learning_rate=1e-4,
            logging_steps=1,
            save_strategy="no",
            bf16=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model(options.output_dir)
    tokenizer.save_pretrained(options.output_dir)


if __name__ == "__main__":
    main()
