"""The recipes: every flag exists, and each family's class and tokenizer follow segments through a run of it.

The models are tiny random ones of the classes that the recipes name; the tokenizers are the real ones.
"""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from trl import TrlParser
from typer.testing import CliRunner

import segattn
from families.tiny_models import build
from segattn.cli.main import app
from segattn.training import ModelSettings, SFTSettings, TrainSettings
from templates.real_tokenizers import load

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))
PAGE = (ROOT / "docs" / "recipes.md").read_text()
COMMANDS = [
    line.replace("\\\n", " ") for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in re.findall(r"^segattn (?:[^\n]*\\\n)*[^\n]*", block, re.MULTILINE)
]  # fmt: skip
TEXT_ONLY = r".*language_model.*\.(q_proj|v_proj)"

CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"Anna puts {number} apples into the basket. How many apples are there?"},
            {"role": "assistant", "content": f"There are {number}."},
            {"role": "user", "content": "And where are they?"},
            {"role": "assistant", "content": "In the basket."},
        ]
    }
    for number in range(4)
]


def parse(arguments):
    parser = TrlParser((TrainSettings, SFTSettings, ModelSettings), allow_abbrev=False)
    words = ["--model_name_or_path" if word == "--model" else word for word in arguments]
    return parser.parse_args_and_config(words)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_flag_exists_and_the_adapter_is_the_papers(recipe):
    given = yaml.safe_load(recipe.read_text())
    settings, sft, model = parse(["--config", str(recipe), "--data", "x"])
    for name, value in given.items():
        [owner] = [one for one in (settings, sft, model) if hasattr(one, name)]
        assert getattr(owner, name) == value, name
    assert (model.lora_r, model.lora_alpha, model.lora_dropout) == (32, 64, 0.05)
    assert model.lora_target_modules == ["q_proj", "v_proj"]


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_every_command_of_the_page_can_be_read(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, *arguments = shlex.split(command, comments=True)[1:]
    if name == "train":
        parse(arguments)
        return
    from typer.main import get_command

    group = get_command(app)
    _, found, _ = group.resolve_command(group.make_context("segattn", [name], resilient_parsing=True), [name])
    known = {flag for parameter in found.params for flag in parameter.opts}
    assert {word for word in arguments if word.startswith("--")} <= known


def test_the_page_has_a_command_for_every_recipe():
    for recipe in RECIPES:
        assert any(f"examples/recipes/{recipe.name}" in command for command in COMMANDS)


def tiny_checkpoint(folder, family, tokenizer, image_text):
    model = build(family, "sdpa", vocab_size=len(tokenizer), max_position_embeddings=2048, image_text=image_text)
    for config in (model.config, model.config.get_text_config(), model.generation_config):
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return type(model).__name__


RUNS = [
    pytest.param("qwen3", "qwen3", "qwen3", False, "Qwen3ForCausalLM", [], id="qwen3"),
    pytest.param("llama3", "llama3_1", "llama", False, "LlamaForCausalLM", [], id="llama3", marks=pytest.mark.slow),
    pytest.param(
        "llama3", "llama3_1", "llama", False, "LlamaForCausalLM",
        ["--lora_r", "64", "--lora_alpha", "128", "--lora_target_modules", "all-linear", "--opening_steps", "1"],
        id="llama3-stronger", marks=pytest.mark.slow,
    ),
    pytest.param(
        "gemma3", "gemma3", "gemma3_text", False, "Gemma3ForCausalLM", [], id="gemma3-1b", marks=pytest.mark.slow
    ),
    pytest.param(
        "gemma3", "gemma3", "gemma3", True, "Gemma3ForConditionalGeneration",
        ["--lora_target_modules", TEXT_ONLY], id="gemma3-4b", marks=pytest.mark.slow,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "tokenizer", "family", "image_text", "class_name", "more"), RUNS)
def test_a_recipe_trains_a_tiny_model_of_its_family(
    recipe, tokenizer, family, image_text, class_name, more, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert tiny_checkpoint(tmp_path / "base", family, load(tokenizer), image_text) == class_name
    (tmp_path / "data").mkdir()
    for split in ("train", "dev"):
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in CHATS))
    small = ["--dtype", "float32", "--bf16", "false", "--max_steps", "2", "--per_device_train_batch_size", "2"]
    small += ["--eval_steps", "2", "--logging_steps", "1", "--learning_rate", "1e-2", "--warmup_steps", "0"]
    given = ["--model", "base", "--data", "data", "--output_dir", "out"]
    config = str(ROOT / "examples" / "recipes" / f"{recipe}.yaml")
    result = CliRunner().invoke(app, ["train", "--config", config, *given, *more, *small, "--json"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["steps"] == 2
    assert [point["step"] for point in shown["curve"]] == [0, 2]
    assert shown["curve"][0]["loss"] != shown["curve"][1]["loss"]
    model, tokenizer = segattn.from_pretrained("out")
    assert follows_segments(model, tokenizer)
    adapted = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert adapted
    assert not [name for name in adapted if "vision" in name]


def follows_segments(model, tokenizer):
    """Whether the first user token sees the last one of its message, and no token of a later message."""
    segmenter = segattn.Segmenter.from_tokenizer(tokenizer)
    messages = CHATS[0]["messages"][:3]
    batch = segmenter.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    ids, segments = batch["input_ids"], batch["segment_ids"][0].tolist()
    first = segments.index(0)
    ends = [max(place for place, segment in enumerate(segments) if segment == number) for number in (0, 1)]

    def moved(place):
        changed = ids.clone()
        changed[0, place] = 1000  # any other word: markers stay what they are, and the segments are given
        with torch.no_grad():
            rows = [model(input_ids=row, segment_ids=batch["segment_ids"]).logits[0, first] for row in (ids, changed)]
        return not torch.equal(*rows)

    return moved(ends[0] - 3) and not moved(ends[1] - 3)
