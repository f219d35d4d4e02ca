"""Some thousand mixed requests, some of them hostile: no wrong token, no lost block, and a server that stays."""

import http.client
import json
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("vllm", reason="needs vLLM in an environment of its own: make test-serve")

from serving.http_server import Client, running, tokens_of

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

REQUESTS = 2000
CLIENTS = 8


def table_of(served):
    """(messages, override, the answer by hand) of forty requests that share beginnings."""
    client, rng, table = Client(served, 21), random.Random(21), []
    systems = [client.message("system", length) for length in (30, 64)]
    opening = client.message("user", 66)["content"]
    for number in range(40):
        question = {"role": "user", "content": opening + client.message("user", 1 + number)["content"]}
        messages = [rng.choice(systems), question] if rng.random() < 0.7 else [question]
        if rng.random() < 0.3:
            messages += [client.message("assistant", 20), client.message("user", 40)]
        ids, _ = client.prompt(messages)
        override, spans = rng.choice(
            [(None, None), (None, None), ("causal", []), ([2, 40, 44, 80], [(2, 40), (44, 80)])]
        )
        assert len(ids) >= 80
        table.append((messages, override, client.wanted(messages, spans)))
    return table


def hostile(server, rng, messages):
    """A request that must be refused, or a client that leaves."""
    kind = rng.randrange(4)
    if kind == 0:
        assert server.chat(messages, vllm_xargs={"segment_attention": [5, 2]})[0] == 400
    elif kind == 1:
        assert server.post("/v1/chat/completions", b'{"model": "tiny", "messages": [')[0] == 400
    elif kind == 2:
        assert server.chat([{"role": "user", "content": "y" * rng.choice((300, 4000))}])[0] == 400
    else:
        body = {"model": "tiny", "messages": messages, "max_tokens": 200, "ignore_eos": True, "stream": True}
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        if rng.random() < 0.5:
            connection.getresponse().read(20)
        connection.close()


@pytest.mark.timeout(1800)
def test_soak(served, tmp_path):
    table = table_of(served)
    with running(served[0], tmp_path / "log") as server:

        def one(number):
            rng = random.Random(number)
            messages, override, wanted = rng.choice(table)
            if rng.random() < 0.1:
                hostile(server, rng, messages)
                return None
            xargs = {} if override is None else {"vllm_xargs": {"segment_attention": override}}
            return tokens_of(server.chat(messages, **xargs)) == [wanted]

        with ThreadPoolExecutor(CLIENTS) as pool:
            right = [result for result in pool.map(one, range(REQUESTS)) if result is not None]
        until = time.monotonic() + 60
        while server.blocks_in_use() > 0 and time.monotonic() < until:
            time.sleep(0.5)
        print(f"\nsoak: {sum(right)} of {len(right)} answers right, {REQUESTS - len(right)} hostile requests")
        assert all(right)
        assert server.blocks_in_use() == 0


def test_killed_and_started_again_it_answers_the_same(served, tmp_path):
    table = table_of(served)[:5]
    for attempt in range(2):
        with running(served[0], tmp_path / f"log{attempt}") as server:
            for messages, override, wanted in table:
                xargs = {} if override is None else {"vllm_xargs": {"segment_attention": override}}
                assert tokens_of(server.chat(messages, **xargs)) == [wanted]
            if attempt == 0:
                server.ended = True
                server.process.send_signal(signal.SIGKILL)
