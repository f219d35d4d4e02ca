"""Serving chats with a shared system prompt: vLLM with segments against the same engine causally.

SmolLM2-135M and the adapter that comes with the package, served by `segattn serve` on the loopback. vLLM's own
benchmark client sends the same chats to both contestants in turns, round by round; "causal" are requests to the same
adapter with `"segment_attention": "causal"`. Each round of each contestant begins with an empty prefix cache (a cache
salt of its own).

Run it in the environment of vLLM, which `make test-serve` makes, with pandas added (the client reads chats with it).
One thread computes, the client has the second core:

.venv-serve/bin/python benchmarks/serving.py            # about twelve minutes on two cores
.venv-serve/bin/python benchmarks/serving.py --quick    # a smoke test, into runs/bench
"""

import argparse
import asyncio
import contextlib
import importlib.util
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from script import RESULTS, ROOT, shown, summary, tell

from segattn.bench.machine import folder_name, provenance
from segattn.bench.results import Results, Row
from segattn.pretrained import fetch, resolve_model

ARMS: dict[str, dict[str, Any]] = {
    "segments": {},
    "causal": {"vllm_xargs": {"segment_attention": "causal"}},
}
FIGURES = {
    "output tokens per second": lambda made: made["output_throughput"],
    "median seconds to the first token": lambda made: made["median_ttft_ms"] / 1000,
    "median seconds between tokens": lambda made: made["median_itl_ms"] / 1000,
}
MODEL = "smollm2-segments"
FLAGS = {
    "--dtype": "float32",
    "--max-model-len": "1024",
    "--block-size": "32",
    "--max-num-seqs": "32",
    "--max-num-batched-tokens": "1024",
    "--kv-cache-memory-bytes": str(1 << 29),
    "--seed": "0",
}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # the client, the server and its scheduler want the other core
    "OMP_WAIT_POLICY": "PASSIVE",
    # The worker in the engine's process (the server has an engine process all the same): two processes that wait for
    # each other spin, which one core cannot afford.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
SYSTEM = (
    "You are a careful assistant. Read the whole question before you answer, and answer in one short sentence. " * 10
)
WORDS = (
    "river",
    "stone",
    "cloud",
    "garden",
    "window",
    "letter",
    "music",
    "bread",
    "winter",
    "train",
    "island",
    "paper",
)
START_SECONDS = 300


@contextmanager
def server(log: Path) -> Iterator[int]:
    """Serve on a free port of the loopback; ends what it started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-m", "segattn", "serve", MODEL, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--enforce-eager", *(word for flag in FLAGS.items() for word in flag)]
    with log.open("w") as out:
        environment = {**os.environ, **ENVIRONMENT}
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        until = time.monotonic() + START_SECONDS
        while not alive(port):
            if process.poll() is not None or time.monotonic() > until:
                tell(log.read_text()[-3000:])
                raise SystemExit("the server did not start; its last lines stand above")
            time.sleep(0.5)
        yield port
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


def alive(port: int) -> bool:
    """Whether the server answers."""
    try:
        fetched(port, "/health")
    except OSError:
        return False
    return True


def fetched(port: int, path: str) -> str:
    """A page of the server."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        return str(answer.read().decode())


def cache_tokens(port: int) -> tuple[float, float]:
    """Prompt tokens that were looked for in the prefix cache so far, and that were found."""
    text = fetched(port, "/metrics")
    found = [re.search(rf"^vllm:prefix_cache_{name}_total\{{.*\}} (\S+)$", text, re.M) for name in ("queries", "hits")]
    if found[0] is None or found[1] is None:
        raise SystemExit("vLLM's /metrics name no prefix cache; this script was written for vLLM 0.32")
    return float(found[0][1]), float(found[1][1])


def write_chats(file: Path, count: int) -> None:
    """ChatML prompts of one system message, about 200 tokens, and different questions of 20 to 120 words."""
    generator = random.Random(0)
    lines = []
    for _ in range(count):
        words = " ".join(generator.choice(WORDS) for _ in range(generator.randint(20, 120)))
        turns = [("system", SYSTEM.strip()), ("user", f"Tell me about {words}.")]
        prompt = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
        lines.append(json.dumps({"prompt": f"{prompt}<|im_start|>assistant\n"}))
    file.write_text("\n".join(lines) + "\n")


def bench(port: int, chats: Path, given: argparse.Namespace, clients: int, arm: str, salt: str) -> dict[str, Any]:
    """One run of vLLM's benchmark client (`vllm bench serve`)."""
    from vllm.benchmarks.serve import add_cli_args, main_async

    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    body = {**ARMS[arm], "cache_salt": salt}
    arguments = parser.parse_args(
        ["--backend", "openai", "--endpoint", "/v1/completions", "--port", str(port), "--model", MODEL,
         "--tokenizer", str(fetch()), "--dataset-name", "custom", "--dataset-path", str(chats), "--skip-chat-template",
         "--custom-output-len", str(given.tokens), "--num-prompts", str(given.chats), "--max-concurrency", str(clients),
         "--temperature", "0", "--ignore-eos", "--extra-body", json.dumps(body), "--disable-tqdm", "--save-detailed",
         "--seed", "0"]
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        made: dict[str, Any] = asyncio.run(main_async(arguments))
    if made["completed"] != given.chats:
        raise SystemExit(f"{made['completed']} of {given.chats} requests were answered; expected all. Read the log")
    return made


def measure(port: int, chats: Path, given: argparse.Namespace, clients: int) -> list[Row]:
    """Both contestants in turns, after a round that does not count; one row for each figure."""
    figures: dict[str, dict[str, list[float]]] = {name: {arm: [] for arm in ARMS} for name in FIGURES}
    looked_for, hits = dict.fromkeys(ARMS, 0.0), dict.fromkeys(ARMS, 0.0)
    texts: dict[str, list[str]] = {}
    for done in range(given.rounds + 1):
        for arm in list(ARMS) if done % 2 else list(ARMS)[::-1]:
            before = cache_tokens(port)
            made = bench(port, chats, given, clients, arm, f"{clients} {done} {arm}")
            after = cache_tokens(port)
            texts[arm] = made["generated_texts"]
            if done:
                looked_for[arm] += after[0] - before[0]
                hits[arm] += after[1] - before[1]
                for name, figure in FIGURES.items():
                    figures[name][arm].append(figure(made))
    facts = {
        "chats per round": given.chats,
        "prompt tokens per chat": round(looked_for["causal"] / given.rounds / given.chats, 1),
        "output tokens per chat": given.tokens,
        "prompt tokens from the prefix cache": {arm: round(hits[arm] / looked_for[arm], 4) for arm in ARMS},
        "answers that differ between the contestants": sum(a != b for a, b in zip(*texts.values(), strict=True)),
    }
    return [
        Row({"model": MODEL, "clients": clients, "figure": name}, figures[name], ("causal",), facts=facts)
        for name in FIGURES
    ]


def read_arguments() -> argparse.Namespace:
    """Read the command line; --quick overrides the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few chats and rounds, into runs/bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chats", type=int, default=12, help="requests of a round")
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 1], help="requests at a time")
    parser.add_argument("--output", type=Path, help="folder of the results, in place of the repository's own")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.chats, given.tokens, given.clients = 2, 4, 4, [2]
        given.output = given.output or ROOT / "runs" / "bench"
    return given


def main() -> None:
    """Measure, print a line for each figure, write JSON."""
    from segattn.serving.hooked import installed_version

    given = read_arguments()
    if importlib.util.find_spec("vllm") is None or importlib.util.find_spec("pandas") is None:
        tell("vLLM or pandas is not installed here, nothing is measured; see python benchmarks/serving.py --help")
        return
    torch.set_num_threads(int(ENVIRONMENT["OMP_NUM_THREADS"]))  # what the results name
    resolve_model(MODEL)
    installed = installed_version()
    settings = {
        "vllm": " ".join(installed or ()),
        "flags": FLAGS,
        "rounds": given.rounds,
        "chats": given.chats,
        "tokens": given.tokens,
        "quick": given.quick,
    }
    device = torch.device("cpu")
    # Beside the folders of the devices: the page of the other benchmarks does not read it.
    file = (given.output or RESULTS) / f"serving-{folder_name(device)}.json"
    results = Results(file, "serving", settings, provenance(device))
    with tempfile.TemporaryDirectory() as folder:
        chats = Path(folder) / "chats.jsonl"
        write_chats(chats, given.chats)
        with server(Path(folder) / "log") as port:
            for clients in given.clients:
                for row in measure(port, chats, given, clients):
                    results.add(row)
                    tell(summary(row))
                tell(f"from the prefix cache: {row.facts['prompt tokens from the prefix cache']}")
    results.finish()
    tell(f"results: {shown(file)}")


if __name__ == "__main__":
    main()
