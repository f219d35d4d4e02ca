"""Useful tokens per second of a training step: padded, grouped by length, joined without padding, packed.

One adapter on SmolLM2-135M, under segments and causally. The contestants take turns in one process, round by round, and
each sees its own batches of the same samples; a token is useful if it is not padding. Ratios are taken round by round.

python benchmarks/packing.py --data data/banking77
python benchmarks/packing.py --data data/banking77 --quick    # a smoke test: few samples and rounds, into runs/bench
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from script import RESULTS, ROOT, shown, summary, tell

import segattn
from segattn.bench.machine import folder_name, pick_dtype, provenance
from segattn.bench.results import Results, Row
from segattn.bench.timing import synchronize
from segattn.data import load_training_samples
from segattn.pretrained import fetch
from segattn.training import SegmentCollator, SegmentSFTTrainer, SFTSettings
from segattn.training.dataset import encode_dataset
from segattn.training.packing import pack
from segattn.training.sampling import LengthGroups

WAYS = ("padded", "grouped", "padding-free", "packed")
ARMS = ("segments", "causal")


def make_trainer(folder: str, dtype: torch.dtype, dataset: Any, model: Any, tokenizer: Any) -> SegmentSFTTrainer:
    """The trainer whose loss is timed; its own loop does not run."""
    from peft import LoraConfig

    arguments = SFTSettings(
        folder, bf16=False, eval_strategy="no", eval_on_start=False, report_to="none", disable_tqdm=True,
        padding_free=True,  # so that it checks that this model keeps documents apart
    )  # fmt: skip
    adapter = LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SegmentSFTTrainer(
        model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer, peft_config=adapter
    )
    trainer.model.to(dtype)
    trainer.create_optimizer()
    return trainer


def batches(way: str, dataset: Any, size: int, max_length: int, pad: int) -> Iterator[dict[str, Any]]:
    """Endless batches of one way; packed ones hold about as many tokens as `size` rows do."""
    rows, collate = list(dataset), SegmentCollator(pad, padding_free=way == "padding-free")
    if way == "packed":
        mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
        rows = list(pack(dataset, max_length, quiet=True))
        size = max(1, round(size * mean / max_length))
    lengths, generator, epoch = [len(row["input_ids"]) for row in rows], random.Random(0), 0
    while True:
        order = generator.sample(range(len(rows)), len(rows))
        if way == "grouped":
            sampler = LengthGroups(size, lengths, seed=0)
            sampler.set_epoch(epoch)
            order = list(sampler)[size:]  # the first batch is the longest one, not a usual one
        for start in range(0, len(order) - size + 1, size):
            yield collate([rows[row] for row in order[start : start + size]])
        epoch += 1


def step(trainer: SegmentSFTTrainer, batch: dict[str, Any], arm: str) -> tuple[float, int, int]:
    """Seconds, useful tokens and all tokens of one training step."""
    if arm == "causal":
        batch = {**batch, "segment_ids": torch.full_like(batch["segment_ids"], -1)}
    every = batch["input_ids"].numel()
    useful = int(batch["attention_mask"].sum()) if "attention_mask" in batch else every
    model, optimizer, device = trainer.model, trainer.optimizer, trainer.accelerator.device
    model.train()
    synchronize(device)
    start = time.perf_counter()
    trainer.compute_loss(model, trainer._prepare_inputs(batch)).backward()
    optimizer.step()
    optimizer.zero_grad()
    synchronize(device)
    return time.perf_counter() - start, useful, every


def measure(trainer: SegmentSFTTrainer, sources: dict[str, Iterator[Any]], rounds: int) -> list[Row]:
    """All ways under both arms in turn, after a round that does not count; one row for each arm."""
    speeds: dict[str, dict[str, list[float]]] = {arm: {way: [] for way in sources} for arm in ARMS}
    useful, every = dict.fromkeys(sources, 0), dict.fromkeys(sources, 0)
    for done in range(rounds + 1):
        first = done % len(WAYS)
        for way in WAYS[first:] + WAYS[:first]:
            batch = next(sources[way])
            for arm in ARMS if done % 2 else ARMS[::-1]:
                seconds, tokens, size = step(trainer, dict(batch), arm)
                if done:
                    speeds[arm][way].append(tokens / seconds)
            if done:
                useful[way] += tokens
                every[way] += size
    facts = {
        "unit": "useful tokens per second",
        "padding": {way: round(1 - useful[way] / every[way], 4) for way in sources},
        "tokens per step": {way: round(every[way] / rounds, 1) for way in sources},
    }
    return [Row({"model": "SmolLM2-135M", "arm": arm}, speeds[arm], ("padded",), facts=facts) for arm in ARMS]


def read_arguments() -> argparse.Namespace:
    """Read the command line; --quick overrides the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/banking77", help="samples, as for segattn train")
    parser.add_argument("--quick", action="store_true", help="few samples and rounds, into runs/bench")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16, help="rows of an unpacked batch")
    parser.add_argument("--max-length", type=int, default=512, help="the most tokens of a packed row")
    parser.add_argument("--samples", type=int, default=4000, help="how many samples the batches are made of")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--output", type=Path, help="folder of the results, in place of the repository's own")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.batch, given.max_length, given.samples = 2, 4, 128, 64
        given.output = given.output or ROOT / "runs" / "bench"
    return given


def main() -> None:
    """Measure, print a line for each arm, write JSON."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given = read_arguments()
    if not Path(given.data).exists():
        tell(f"{given.data} is not here, nothing is measured; pass --data (a .jsonl file or a folder)")
        return
    path = fetch()
    tokenizer = AutoTokenizer.from_pretrained(path)
    segmenter = segattn.Segmenter.from_tokenizer(tokenizer)
    samples = load_training_samples(given.data)
    samples = random.Random(0).sample(samples, min(given.samples, len(samples)))
    data = encode_dataset(samples, segmenter, max_length=given.max_length, too_long="cut_longest_segment")
    data.tell("training", given.max_length)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = pick_dtype(given.dtype, device)
    model = segattn.enable(AutoModelForCausalLM.from_pretrained(path, dtype=dtype), segmenter)
    settings = {
        "data": Path(given.data).name,
        "samples": len(data.dataset),
        "batch": given.batch,
        "max_length": given.max_length,
        "dtype": str(dtype).removeprefix("torch."),
        "quick": given.quick,
    }
    # Beside the folders of the devices: the page of the other benchmarks does not read it.
    file = (given.output or RESULTS) / f"packing-{folder_name(device)}.json"
    results = Results(file, "packing", settings, provenance(device))
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder, dtype, data.dataset, model, tokenizer)
        pad = tokenizer.pad_token_id or 0
        sources = {way: batches(way, data.dataset, given.batch, given.max_length, pad) for way in WAYS}
        for row in measure(trainer, sources, given.rounds):
            results.add(row)
            speeds = ", ".join(f"{way} {row.figure(way).median:.0f}" for way in WAYS)
            tell(f"{row.cell['arm']}: useful tokens per second: {speeds}")
            tell(summary(row))
    tell(f"padding: {results.rows[0].facts['padding']}")
    results.finish()
    tell(f"results: {shown(file)}")


if __name__ == "__main__":
    main()
