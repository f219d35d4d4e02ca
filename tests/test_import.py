import json
import subprocess
import sys

import pytest

import segattn

HEAVY = ("transformers", "peft", "trl", "datasets", "accelerate", "matplotlib", "scipy", "typer", "rich", "gguf")


def modules_after(statement):
    code = f"import sys, json; {statement}; print(json.dumps(sorted(m.split('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_needs_only_torch():
    tensors = "import segattn; segattn.segment_mask(segattn.spans_to_segment_ids([(0, 2)], 3))"
    assert not modules_after(tensors) & set(HEAVY)


def test_this_test_can_fail():
    assert "transformers" in modules_after("import segattn, transformers")


def test_every_public_name_resolves():
    for name in segattn.__all__:
        assert getattr(segattn, name) is not None


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(AttributeError, match="segment_mask"):
        _ = segattn.segment_masks
