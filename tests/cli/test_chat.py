import functools
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

import segattn
from cli.tiny_chat import make_model, make_tokenizer
from segattn.cli.main import app


def chat(folder, *lines, options=()):
    arguments = ["chat", "--model", str(folder), "--max-new-tokens", "8", *options]
    result = CliRunner().invoke(app, arguments, input="".join(f"{line}\n" for line in lines))
    assert result.exit_code == 0, result.exception
    return result


def saved(tmp_path, folder, *lines, **options):
    chat(folder, *lines, f"/save {tmp_path / 'chat.json'}", **options)
    return json.loads((tmp_path / "chat.json").read_text())


def test_a_pipe_gives_answers_and_nothing_else(checkpoints, tmp_path):
    content = saved(tmp_path, checkpoints / "merged", "Hi", "", "And then?")
    result = chat(checkpoints / "merged", "Hi", "", "And then?")
    for turn in content["turns"]:
        assert turn["text"] in result.stdout
    assert "you>" not in result.stdout
    assert result.stderr == ""
    assert [message["content"] for message in content["messages"] if message["role"] == "user"] == ["Hi", "And then?"]


def test_the_second_turn_reuses_the_first(checkpoints, tmp_path):
    turns = saved(tmp_path, checkpoints / "merged", "Hi", "And then?")["turns"]
    assert turns[0]["reused_tokens"] == 0
    assert turns[1]["reused_tokens"] >= turns[0]["prompt_tokens"]
    stats = chat(checkpoints / "merged", "/stats", "Hi", "And then?", "/stats").stdout
    assert stats.startswith("No answers yet.")
    assert f"2: prompt {turns[1]['prompt_tokens']} tokens, {turns[1]['reused_tokens']} from the cache" in stats
    prompts = sum(turn["prompt_tokens"] for turn in turns)
    share = turns[1]["reused_tokens"] / prompts
    assert f"Prefix cache: {share:.0%} of {prompts} prompt tokens reused;" in stats


@pytest.mark.parametrize("kind", ["merged", "adapter", "base"])
def test_a_file_keeps_prefixes_from_one_run_to_the_next(checkpoints, tmp_path, kind):
    options = ["--system", "Be brief.", "--prefix-cache", str(tmp_path / "prefixes")]
    first = saved(tmp_path, checkpoints / kind, "Hi", options=options)["turns"]
    second = saved(tmp_path, checkpoints / kind, "Hi", "Ho", options=options)["turns"]
    assert first[0]["reused_tokens"] == 0
    assert second[0]["reused_tokens"] == first[0]["prompt_tokens"] - 1
    assert second[0]["text"] == first[0]["text"]
    without = saved(tmp_path, checkpoints / kind, "Hi", "Ho", options=options[:2])["turns"]
    assert [turn["text"] for turn in second] == [turn["text"] for turn in without]


def test_mask_shows_the_conversation(checkpoints):
    out = chat(checkpoints / "merged", "/mask", "Hi", "/mask", options=["--system", "Be brief."]).stdout
    assert "<|im_start|>system⏎Be brief.<|im_end|>⏎" in out
    assert "<|im_start|>user⏎Hi<|im_end|>⏎" in out
    assert "\x1b[" not in out, "no colours in a pipe"


def test_mask_of_nothing_is_a_line(checkpoints):
    assert "/mask: the conversation has no messages yet" in chat(checkpoints / "merged", "/mask").stdout


def test_system_and_reset(checkpoints, tmp_path):
    content = saved(tmp_path, checkpoints / "merged", "Hi", "/system Be kind.", "Ho", "/reset", "Hu")
    assert [message["content"] for message in content["messages"]][:2] == ["Be kind.", "Hu"]
    assert len(content["turns"]) == 3


def test_unknown_commands_and_missing_arguments_are_answered(checkpoints):
    out = chat(checkpoints / "merged", "/msk", "/save", "/reset now", "/help").stdout
    assert "There is no /msk; there are /mask" in out
    assert "Expected: /save FILE" in out
    assert "Expected: /reset\n" in out
    assert "/quit" in out


def test_a_file_that_cannot_be_written_is_a_line(checkpoints, tmp_path):
    assert "/save: " in chat(checkpoints / "merged", f"/save {tmp_path / 'no' / 'where'}").stdout


def test_quit_ends_the_chat_before_the_input_does(checkpoints):
    assert "There is no" not in chat(checkpoints / "merged", "/quit", "/unknown").stdout


def test_a_leading_space_says_a_slash_to_the_model(checkpoints, tmp_path):
    content = saved(tmp_path, checkpoints / "merged", " /help")
    assert content["messages"][0]["content"] == "/help"


def test_a_turn_that_cannot_be_answered_is_a_line_and_the_chat_goes_on(checkpoints):
    result = chat(checkpoints / "merged", "x" * 3000, "Hi", "/stats")
    assert "the conversation has 3019 tokens" in result.stderr
    assert "1: prompt 21 tokens" in result.stdout


class Terminal:
    """A chat in a real pseudo-terminal."""

    def __init__(self, folder, *options):
        self.master, child = pty.openpty()
        code = "from segattn.cli.main import main; main()"
        command = [sys.executable, "-c", code, "chat", "--model", str(folder), *options]
        streams = {"stdin": child, "stdout": child, "stderr": child}
        environment = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": ""}
        # A test run in the background ignores Ctrl-C, and so would what it starts.
        heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        self.process = subprocess.Popen(command, **streams, env=environment, start_new_session=True, preexec_fn=heeding)
        os.close(child)
        self.seen = ""

    def wait_for(self, text, seconds=60):
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} did not come: {self.seen!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def say(self, text):
        os.write(self.master, f"{text}\n".encode())

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def endless(tmp_path):
    """A segment checkpoint whose answers never end by themselves."""
    model, tokenizer = make_model(context=100_000), make_tokenizer()
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    segattn.save_pretrained(segattn.enable(model, segattn.Segmenter.from_tokenizer(tokenizer)), tmp_path / "endless")
    tokenizer.save_pretrained(tmp_path / "endless")
    return tmp_path / "endless"


def test_ctrl_c_stops_the_answer_but_not_the_program(endless):
    terminal = Terminal(endless, "--max-new-tokens", "90000")
    try:
        terminal.wait_for("/quit leaves.")
        terminal.wait_for("you> ")
        terminal.say("Hi")
        terminal.wait_for("Hi\r\n")
        time.sleep(0.5)
        os.kill(terminal.process.pid, signal.SIGINT)
        terminal.wait_for("[stopped]")
        terminal.wait_for("you> ")
        terminal.say("/stats")
        terminal.wait_for(", stopped")
        terminal.wait_for("you> ")
        time.sleep(0.5)  # no signal into the moment between the prompt and the wait for a key
        os.kill(terminal.process.pid, signal.SIGINT)
        terminal.wait_for("/quit leaves.")
        terminal.say("/mask")
        terminal.wait_for("<|im_end|>\x1b[0m")  # coloured by segment
        terminal.say("/quit")
        assert terminal.process.wait(timeout=20) == 0
    finally:
        terminal.close()
