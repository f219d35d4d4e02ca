import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

import oracle
from cli.tiny_chat import HandSegmenter, make_tokenizer
from segattn.cli.display import coloured_tokens, mask_picture, runs_of, runs_table, visible
from segattn.cli.main import app

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "And 1 + 1?"},
]


def inspect(*arguments):
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def test_json_of_a_chat_file_holds_the_segments(checkpoints, tmp_path):
    (tmp_path / "chat.json").write_text(json.dumps(CHAT))
    result = inspect("--messages", tmp_path / "chat.json", "-m", checkpoints / "base", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    batch = HandSegmenter(make_tokenizer()).apply_chat_template(CHAT)
    assert content["input_ids"] == batch["input_ids"][0].tolist()
    # By hand the segments are numbered by message, here one after another.
    numbers = {-1: -1, 0: 0, 1: 1, 3: 2}
    assert content["segment_ids"] == [numbers[s] for s in batch["segment_ids"][0].tolist()]
    assert [run["segment"] for run in content["runs"]] == [0, 1, -1, 2, -1]
    assert "".join(run["text"] for run in content["runs"]) == make_tokenizer().decode(content["input_ids"])
    n = len(content["input_ids"])
    assert content["cost"]["dense"] == n * n
    assert content["policy"] == "turns"


def test_the_table_and_the_mask_of_a_short_text(checkpoints):
    result = inspect("Hi", "-m", checkpoints / "base")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[1].split() == ["0", "0", "10", "10", "<|im_start|>user⏎Hi<|im_end|>⏎"]
    assert lines[4] == "▒" + "█" * 9 + "·" * 11
    assert lines[24] == "▒" * 21
    assert "21 tokens, policy turns" in lines[-1]


def test_the_mask_is_saved_as_a_picture(checkpoints, tmp_path):
    result = inspect("Hi", "-m", checkpoints / "base", "--save", tmp_path / "mask.svg")
    assert result.exit_code == 0, result.output
    assert "<svg" in (tmp_path / "mask.svg").read_text()
    refused = inspect("Hi", "-m", checkpoints / "base", "--save", tmp_path / "mask.nonsense")
    assert refused.exit_code == 2


def test_a_policy_can_be_tried_out(checkpoints):
    result = inspect("Hi", "--system", "Be brief.", "-m", checkpoints / "base", "--policy", "prefix", "--json")
    assert [run["segment"] for run in json.loads(result.stdout)["runs"]] == [0, -1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either a text or --messages FILE; got neither"),
        (["Hi", "--messages", "x.json"], "got both"),
        (["--messages", "nowhere.json"], "cannot be read as JSON"),
    ],
)
def test_what_cannot_be_shown_is_a_message(arguments, message):
    result = inspect(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[]", "[1]", '"text"'])
def test_a_file_that_holds_no_chat_is_a_message(tmp_path, content):
    (tmp_path / "chat.json").write_text(content)
    result = inspect("--messages", tmp_path / "chat.json")
    assert result.exit_code == 2
    assert "chat.json" in result.stderr


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_the_picture_is_the_rule(runs):
    segments = [number if inside else -1 for number, (size, inside) in enumerate(runs) for _ in range(size)]
    allowed = oracle.loop_mask([segments])[0, 0]
    signs = {(True, True): "█", (True, False): "▒", (False, True): "·", (False, False): "·"}
    rows = range(len(segments))
    want = ["".join(signs[bool(allowed[i][j]), j > i] for j in rows) for i in rows]
    assert mask_picture(segments).splitlines() == want


@given(st.text(max_size=40))
def test_nothing_in_a_text_can_steer_the_terminal(text):
    shown = visible(text)
    assert shown.isprintable()
    assert len(shown) >= len(text)


def test_long_texts_are_shortened_in_the_middle():
    tokenizer = make_tokenizer()
    ids = tokenizer("begin" + "x" * 100 + "end").input_ids
    line = runs_table(runs_of(ids, [0] * len(ids), tokenizer)).splitlines()[1]
    assert line.endswith("end")
    assert "begin" in line
    assert "…" in line
    assert len(line) < 80


def test_segments_have_backgrounds_and_causal_tokens_none():
    tokenizer = make_tokenizer()
    text = coloured_tokens(tokenizer("ab\nc").input_ids, [0, 0, -1, 1], tokenizer)
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert set(styles) == {"a", "b", "c"}
    assert styles["a"] == styles["b"] != styles["c"]
    assert text.plain == "ab⏎\nc"
    console = Console(force_terminal=True, width=80)
    with console.capture() as capture:
        console.print(text)
    assert "\x1b[" in capture.get()
