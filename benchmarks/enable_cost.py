"""What `enable` costs on a real model: switching it on, probing it, and decoding one token with it.

Decoding alternates with the stock model in one process; each ratio is the median over pairs, with quartiles.

    python benchmarks/enable_cost.py --output benchmarks/results/enable_cost.json
    python benchmarks/enable_cost.py --quick        # a smoke test: few tokens, few rounds
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from model_cost import write_results

import segattn
from segattn.modeling import probe
from segattn.pretrained import fetch
from segattn.pretrained.environment import environment


def seconds(run: Callable[[], object], rounds: int) -> float:
    """Median seconds of a call, after one that does not count."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def switching(model: Any, rounds: int) -> dict[str, float]:
    """Seconds to enable and disable a class of the verified table, and to probe it."""

    def on_and_off() -> None:
        segattn.enable(model)
        segattn.disable(model)

    probing = seconds(lambda: probe(model), rounds)
    return {
        "enable and disable": seconds(on_and_off, rounds),
        "probe": probing,
        "probe, per layer": probing / model.config.num_hidden_layers,
    }


def decoding(stock: Any, enabled: Any, prompt: int, tokens: int, rounds: int) -> dict[str, float]:
    """Seconds per decoded token after a prefill, and the ratio of segments to the stock model, step by step."""
    ids = torch.randint(100, 40000, (1, prompt), generator=torch.Generator().manual_seed(0))
    segments = segattn.spans_to_segment_ids([(0, prompt // 4), (prompt // 4, prompt - 4)], prompt)[None]
    ratios, stock_times, enabled_times = [], [], []
    for _ in range(rounds):
        caches = [
            stock(ids, use_cache=True, logits_to_keep=1).past_key_values,
            enabled(ids, segment_ids=segments, use_cache=True, logits_to_keep=1).past_key_values,
        ]
        for step in range(tokens):
            token, pair = ids[:, step : step + 1], []
            for model, cache in zip((stock, enabled), caches, strict=True):
                start = time.perf_counter()
                model(token, past_key_values=cache, use_cache=True)
                pair.append(time.perf_counter() - start)
            if step >= 2:  # the first steps grow buffers
                stock_times.append(pair[0])
                enabled_times.append(pair[1])
                ratios.append(pair[1] / pair[0])
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "stock, seconds per token": statistics.median(stock_times),
        "segments, seconds per token": statistics.median(enabled_times),
        "ratio": middle,
        "low": low,
        "high": high,
        "pairs": len(ratios),
    }


def main() -> None:
    """Measure, print, write JSON."""
    from transformers import AutoModelForCausalLM

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few tokens and rounds")
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    arguments = parser.parse_args()
    prompt, tokens, rounds = (32, 6, 1) if arguments.quick else (256, 64, 5)
    stock, enabled = (AutoModelForCausalLM.from_pretrained(fetch(), dtype=torch.float32).eval() for _ in range(2))
    with torch.inference_mode():
        results: dict[str, Any] = {"switching": switching(enabled, 1 if arguments.quick else 5)}
        segattn.enable(enabled)
        results["decoding"] = decoding(stock, enabled, prompt, tokens, rounds)
    for name, value in results["switching"].items():
        print(f"{name}: {value * 1000:.1f} ms")
    row = results["decoding"]
    print(f"decode after {prompt} tokens: segments / stock {row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})")
    write_results(arguments.output, {**results, "prompt": prompt, "environment": environment()})


if __name__ == "__main__":
    main()
