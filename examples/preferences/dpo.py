"""Tune a chat model on pairs of answers under segments.

    python examples/preferences/dpo.py --model smollm2 --pairs pairs.jsonl --output-dir runs/dpo

Each line of pairs.jsonl has `prompt`, `chosen` and `rejected`, lists of messages. Without --pairs, a few made-up ones
teach short answers.
"""

import argparse

from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig

import segattn
from segattn.pretrained import resolve_model
from segattn.training import SegmentDPOTrainer

THINGS = ("a map", "a clock", "a bridge", "a river", "a ladder", "a lamp", "a key", "a boat")


def short_answers() -> Dataset:
    rows = []
    for thing in THINGS:
        about = f"{thing[0].upper()}{thing[1:]}"
        rows.append(
            {
                "prompt": [
                    {"role": "system", "content": "Answer in five words at most."},
                    {"role": "user", "content": f"What is {thing} good for?"},
                ],
                "chosen": [{"role": "assistant", "content": f"{about} helps people daily."}],
                "rejected": [{"role": "assistant", "content": f"{about} is good for very many things, and so on."}],
            }
        )
    return Dataset.from_list(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a folder, a hub id, or smollm2 (the default)")
    parser.add_argument("--pairs", help="a .jsonl file; default: made-up pairs")
    parser.add_argument("--output-dir", default="runs/dpo", help="where the adapter goes (runs/dpo)")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps (20)")
    parser.add_argument(
        "--reference", default="segments", choices=["segments", "causal"], help="how the reference reads"
    )
    options = parser.parse_args()

    path = resolve_model(options.model)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    segattn.enable(model, segattn.Segmenter.from_tokenizer(tokenizer))
    pairs = load_dataset("json", data_files=options.pairs, split="train") if options.pairs else short_answers()
    trainer = SegmentDPOTrainer(
        model=model,
        reference=options.reference,
        args=DPOConfig(
            options.output_dir,
            max_steps=options.steps,
            per_device_train_batch_size=4,
            learning_rate=1e-4,
            logging_steps=1,
            save_strategy="no",
            bf16=False,
            report_to="none",
        ),
        train_dataset=pairs,
        peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model(options.output_dir)
    tokenizer.save_pretrained(options.output_dir)


if __name__ == "__main__":
    main()
