"""Two engines behind one server: vLLM's own data parallelism, on a CPU."""

from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("vllm", reason="needs vLLM in an environment of its own: make test-serve")

from serving.http_server import Client, running, tokens_of

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_both_engines_answer_what_the_mask_says(served, tmp_path):
    client = Client(served, 1)
    system, opening = client.message("system", 50), client.message("user", 70)["content"]
    chats = [
        [system, {"role": "user", "content": opening + client.message("user", 5 + number)["content"]}]
        for number in range(24)
    ]
    wanted = [[client.wanted(messages)] for messages in chats]
    with running(served[0], tmp_path / "log", "--data-parallel-size", "2") as server:
        for _ in range(3):
            with ThreadPoolExecutor(8) as pool:
                assert list(pool.map(lambda messages: tokens_of(server.chat(messages)), chats)) == wanted
        finished = [
            line for line in server.get("/metrics").splitlines() if line.startswith("vllm:request_success_total")
        ]
        for engine in ("0", "1"):
            assert any(f'engine="{engine}"' in line and float(line.split()[-1]) > 0 for line in finished)
