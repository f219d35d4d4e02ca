"""The example of docs/generation.md runs, on a tiny chat model."""

import re
from pathlib import Path

import segattn
from cli.tiny_chat import make_model, make_tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "generation.md"


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    segmenter = segattn.Segmenter.from_tokenizer(make_tokenizer())
    model = segattn.enable(make_model(), segmenter)
    system = [{"role": "system", "content": "Be brief."}]
    chat = [*system, {"role": "user", "content": "Hi"}]
    batch = segmenter.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    names = {"segattn": segattn, "segmenter": segmenter, "model": model, "system": system, "batch": batch}
    example = next(code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "fill" in code)
    exec(example, names)  # the page's own code
    known = names["cache"].begin(**batch)
    assert known.reused == [batch["input_ids"].shape[1] - 1]
    assert len(names["cache"]) >= 3
