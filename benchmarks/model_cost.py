"""What segments cost on a real model: prefill and decoding, segments against the stock causal model.

The contestants alternate in one process; each figure is a median, with the middle half of the runs beside it.

    python benchmarks/model_cost.py --output benchmarks/results/model_cost.json
    python benchmarks/model_cost.py --quick        # a smoke test: small sizes, few runs
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import segattn
from segattn.pretrained import fetch
from segattn.pretrained.environment import environment

LENGTHS = (128, 256, 512, 1024)


def alternate(contestants: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Run the contestants in turn, after one warm-up round; return seconds per run."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for counted in range(rounds + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if counted:
                times[name].append(time.perf_counter() - start)
    return times


def summary(times: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Median seconds, and the ratio to `base` taken round by round (median and quartiles)."""
    rows = {}
    for name, seconds in times.items():
        ratios = [mine / theirs for mine, theirs in zip(seconds, times[base], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows[name] = {"seconds": statistics.median(seconds), "ratio": middle, "low": low, "high": high}
    return rows


def measure(lengths: tuple[int, ...], new_tokens: int, rounds: int) -> dict[str, object]:
    """Prefill at each length, then decoding after a prefill of the longest."""
    from transformers import AutoModelForCausalLM

    path = fetch()
    # bfloat16 is what the demo trains in; three models share the machine, one in use at a time.
    stock, enabled = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval() for _ in range(2))
    segattn.enable(enabled)
    generator = torch.Generator().manual_seed(0)
    prefill = {}
    for length in lengths:
        ids = torch.randint(100, 40000, (1, length), generator=generator)
        # The layout of the paper's tasks: system prompt, user prompt, a short causal tail.
        segments = segattn.spans_to_segment_ids([(0, length // 4), (length // 4, length * 19 // 20)], length)[None]
        contestants: dict[str, Callable[[], None]] = {
            "causal": lambda ids=ids: stock(ids, logits_to_keep=1),
            "segments": lambda ids=ids, segments=segments: enabled(ids, segment_ids=segments, logits_to_keep=1),
        }
        with torch.inference_mode():
            prefill[str(length)] = summary(alternate(contestants, rounds), "causal")
    options = {"do_sample": False, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    attention_mask = torch.ones_like(ids)
    decode = {
        "causal": lambda: stock.generate(ids, attention_mask=attention_mask, **options),
        "segments": lambda: enabled.generate(ids, attention_mask=attention_mask, segment_ids=segments, **options),
    }
    return {"prefill": prefill, "generate": summary(alternate(decode, rounds), "causal"), "new_tokens": new_tokens}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and few runs")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    arguments = parser.parse_args()
    lengths, new_tokens, rounds = ((64,), 4, 2) if arguments.quick else (LENGTHS, 32, arguments.rounds)
    results = {**measure(lengths, new_tokens, rounds), "rounds": rounds, "environment": environment()}
    for length, rows in results["prefill"].items():  # type: ignore[attr-defined]
        row = rows["segments"]
        print(
            f"prefill {length:>5} tokens: segments / causal {row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        )
    row = results["generate"]["segments"]  # type: ignore[index]
    print(f"generate {new_tokens} tokens after the longest: {row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})")
    write_results(arguments.output, results)


def write_results(path: Path | None, results: dict[str, object]) -> None:
    """Write a benchmark's figures as JSON, all or nothing; without a path, nowhere."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=2) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    main()
