"""A server of vLLM that `segattn serve` starts, clients of it, and what they must be answered."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress

from serving import hand_oracle
from serving.engines import ENVIRONMENT
from serving.tiny_served import Chats

START_SECONDS = 240
FLAGS = {
    "--dtype": "float32",
    "--max-model-len": "512",
    "--block-size": "32",
    "--max-num-seqs": "8",
    "--max-num-batched-tokens": "256",
    "--kv-cache-memory-bytes": str(1 << 26),
    "--served-model-name": "tiny",
    "--seed": "0",
}


class Server:
    def __init__(self, port, process):
        self.port, self.process, self.ended = port, process, False

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return answer.read().decode()

    def post(self, path, body, timeout=120):
        """(status, content)."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def chat(self, messages, **options):
        body = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 6, "ignore_eos": True}
        return self.post("/v1/chat/completions", {**body, "return_token_ids": True, **options})

    def blocks_in_use(self):
        return float(re.search(r"^vllm:kv_cache_usage_perc\{.*\} (\S+)$", self.get("/metrics"), re.M)[1])


@contextmanager
def running(checkpoint, log, *flags):
    """Start a server on the loopback; it must be alive at the end, unless the test ended it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "segattn", "serve", str(checkpoint), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--enforce-eager", *(word for flag in FLAGS.items() for word in flag), *flags]
    environment = {**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    environment.pop("SEGATTN_VLLM", None)
    # A session of its own: what a killed server leaves running can be ended with it.
    options = {"env": environment, "start_new_session": True}
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, **options) as process:
        made = Server(port, process)
        try:
            until = time.monotonic() + START_SECONDS
            while True:
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < until, log.read_text()[-3000:]
                try:
                    made.get("/health")
                    break
                except OSError:
                    time.sleep(0.5)
            yield made
            assert made.ended or process.poll() is None, log.read_text()[-3000:]
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


class Client:
    """Makes messages, and from their construction what must be answered."""

    def __init__(self, served, seed=0):
        self.model, self.chats = served[1], Chats(seed)

    def message(self, role, length):
        return {"role": role, "content": "".join(self.chats.random.choice("abcdefgh ") for _ in range(length))}

    def prompt(self, messages):
        return self.chats.prompt([(m["role"], self.chats.tokenizer(m["content"]).input_ids) for m in messages])

    def wanted(self, messages, spans=None, count=6):
        ids, own = self.prompt(messages)
        tokens, margins = hand_oracle.greedy(self.model, ids, own if spans is None else spans, count)
        assert min(margins) > 1e-3
        return tokens


def tokens_of(answer):
    status, content = answer
    assert status == 200, content
    return [choice["token_ids"] for choice in json.loads(content)["choices"]]
