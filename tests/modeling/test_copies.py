"""Copies of enabled models, what disabling leaves, and what enabling must not touch: everything that is global."""

import copy
import inspect
import io
import pickle
import subprocess
import sys

import pytest
import torch
import transformers
from transformers import masking_utils

import segattn
from modeling.test_peft import with_adapter
from modeling.tiny import build, hand_mask, tokens

IDS = tokens()
ROWS = [[-1] + [4] * 6 + [0] * 5 + [-1] * 2, [0] * 9 + [-1] * 3 + [1] * 2]
OTHER_ROWS = [[0] * 14, [-1] * 5 + [3] * 9]


class Fixed:
    """A segmenter that gives the same rows for any tokens."""

    def __init__(self, rows):
        self.rows = rows

    def segment_ids(self, input_ids, attention_mask=None):
        return torch.tensor(self.rows)

    def to_dict(self):
        return {"rows": self.rows}


def save_and_load(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": save_and_load,
}
MODELS = {
    "llama": build,
    "gemma3": lambda: build("gemma3"),
    "adapter": lambda: with_adapter(build()),
}


def logits(model, **inputs):
    with torch.no_grad():
        return model(input_ids=IDS, **inputs).logits


def oracle(model, rows):
    """`model` is a stock model, maybe with an adapter."""
    inner = getattr(model, "get_base_model", lambda: model)()
    return logits(model, attention_mask=hand_mask(inner, rows, "sdpa"))


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_copy_follows_segments_and_is_independent(make, duplicate):
    stock, model = make(), segattn.enable(make(), Fixed(ROWS))
    want, other, causal = oracle(stock, ROWS), oracle(stock, OTHER_ROWS), logits(stock)
    assert (want - other).abs().max() > 1e-2
    twin = duplicate(model)
    assert segattn.is_enabled(twin)
    assert segattn.modeling.segmenter_of(twin).rows == ROWS
    assert segattn.modeling.segmenter_of(twin) is not segattn.modeling.segmenter_of(model)
    for each in (model, twin):
        torch.testing.assert_close(logits(each), want, atol=1e-5, rtol=0)
    # Another segmenter, another opening bias, a causal block: in the copy only.
    segattn.enable(twin, Fixed(OTHER_ROWS))
    torch.testing.assert_close(logits(twin), other, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(model), want, atol=1e-5, rtol=0)
    segattn.modeling.set_opening(twin, -5.0)
    with segattn.causal(twin):
        torch.testing.assert_close(logits(twin), causal, atol=1e-5, rtol=0)
        torch.testing.assert_close(logits(model), want, atol=1e-5, rtol=0)
    segattn.disable(twin)
    assert not segattn.is_enabled(twin)
    assert type(twin) is type(stock)
    assert torch.equal(logits(twin), causal)
    torch.testing.assert_close(logits(model), want, atol=1e-5, rtol=0)
    # And the other way round.
    twin = duplicate(model)
    segattn.disable(model)
    assert torch.equal(logits(model), causal)
    torch.testing.assert_close(logits(twin), want, atol=1e-5, rtol=0)


def test_a_copy_generates_and_copies_again():
    model = segattn.enable(build(), Fixed(ROWS))
    twin = copy.deepcopy(pickle.loads(pickle.dumps(model)))
    options = {"attention_mask": torch.ones_like(IDS), "do_sample": False, "max_new_tokens": 4}
    assert torch.equal(twin.generate(IDS, **options), model.generate(IDS, **options))
    assert type(twin) is type(model)


def test_a_copy_made_inside_a_causal_block_is_not_causal():
    model = segattn.enable(build(), Fixed(ROWS))
    with segattn.causal(model):
        twin = copy.deepcopy(model)
        torch.testing.assert_close(logits(twin), oracle(build(), ROWS), atol=1e-5, rtol=0)


LOAD = """
import sys
import torch
model = torch.load(sys.argv[1], weights_only=False)
given = torch.load(sys.argv[2])
import segattn
assert segattn.is_enabled(model)
with torch.no_grad():
    error = (model(input_ids=given["ids"], segment_ids=given["segment_ids"]).logits - given["logits"]).abs().max()
assert error < 1e-5, error
segattn.disable(model)
with torch.no_grad():
    assert torch.equal(model(input_ids=given["ids"]).logits, given["causal"])
print(type(model).__mro__[1].__name__)
"""


def test_another_process_loads_it(tmp_path):
    stock, model = with_adapter(build()), segattn.enable(with_adapter(build()))
    torch.save(model, tmp_path / "model.pt")
    given = {
        "ids": IDS,
        "segment_ids": torch.tensor(ROWS),
        "logits": oracle(stock, ROWS),
        "causal": logits(stock),
    }
    torch.save(given, tmp_path / "given.pt")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "model.pt"), str(tmp_path / "given.pt")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def fingerprint(model):
    """All that enabling could have changed in a model, by name."""
    modules = {
        name: (
            type(module),
            sorted(vars(module)),
            id(vars(module).get("config")),
            [list(hooks) for key, hooks in vars(module).items() if key.endswith("_hooks") and hooks is not None],
            module.training,
        )
        for name, module in model.named_modules()
    }
    weights = {name: (id(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    configs = {id(module.config): copy.deepcopy(module.config.to_dict()) for module in (model, model.model)}
    return modules, weights, configs


def assert_same(one, two):
    assert one[0] == two[0]
    assert one[2] == two[2]
    assert one[1].keys() == two[1].keys()
    for name, (identity, value) in one[1].items():
        assert two[1][name][0] == identity, name
        assert torch.equal(two[1][name][1], value), name


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral-window"])
def test_disable_gives_back_the_very_model(name, implementation):
    model = build(name, implementation)
    before, causal = fingerprint(model), logits(model)
    for segmenter in (None, Fixed(ROWS)):  # twice: nothing may add up
        segattn.enable(model, segmenter)
        logits(model, segment_ids=torch.tensor(ROWS))
        model.generate(IDS, segment_ids=torch.tensor(ROWS), max_new_tokens=2, do_sample=False)
        labels = IDS.masked_fill(torch.tensor(ROWS) >= 0, -100)
        model(IDS, segment_ids=torch.tensor(ROWS), labels=labels).loss.backward()
        model.zero_grad(set_to_none=True)
        with segattn.causal(model):
            logits(model)
        with pytest.raises(segattn.SegmentError):
            model(IDS, segment_ids=torch.tensor(ROWS) - 1)
        segattn.disable(model)
        assert_same(before, fingerprint(model))
        assert torch.equal(logits(model), causal)
        assert torch.equal(
            model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=3, do_sample=False),
            build(name, implementation).generate(
                IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=3, do_sample=False
            ),
        )


def test_a_training_step_with_segments_is_the_stock_optimizers_step():
    """The weights after a step, after disabling, are those of a stock model trained under the hand-built mask."""
    labels = IDS.masked_fill(torch.tensor(ROWS) >= 0, -100)
    trained = []
    for enabled in (True, False):
        model = build()
        given = {"attention_mask": hand_mask(model, ROWS, "sdpa")}
        if enabled:
            segattn.enable(model)
            given = {"segment_ids": torch.tensor(ROWS)}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(IDS, labels=labels, **given).loss.backward()
        optimizer.step()
        trained.append(segattn.disable(model).state_dict())
    assert trained[0].keys() == trained[1].keys()
    for name, value in trained[0].items():
        torch.testing.assert_close(value, trained[1][name], atol=1e-6, rtol=0)


def test_two_models_with_their_own_segmenters():
    first, second = segattn.enable(build(), Fixed(ROWS)), segattn.enable(build(), Fixed(OTHER_ROWS))
    for _ in range(2):
        torch.testing.assert_close(logits(first), oracle(build(), ROWS), atol=1e-5, rtol=0)
        torch.testing.assert_close(logits(second), oracle(build(), OTHER_ROWS), atol=1e-5, rtol=0)
    segattn.disable(first)
    assert torch.equal(logits(first), logits(build()))
    torch.testing.assert_close(logits(second), oracle(build(), OTHER_ROWS), atol=1e-5, rtol=0)


def global_state():
    """What transformers shares between all models: its tables, and the functions and classes of its modules."""
    modules = (
        masking_utils,
        inspect.getmodule(transformers.LlamaForCausalLM),
        inspect.getmodule(transformers.Gemma3ForCausalLM),
        inspect.getmodule(transformers.GenerationMixin),
        inspect.getmodule(transformers.PreTrainedModel),
    )
    classes = [
        transformers.LlamaForCausalLM,
        transformers.LlamaModel,
        transformers.Gemma3ForCausalLM,
        transformers.PreTrainedModel,
        transformers.GenerationMixin,
        torch.nn.Module,
    ]
    return {
        "attention": dict(transformers.AttentionInterface._global_mapping),
        "masks": dict(transformers.AttentionMaskInterface._global_mapping),
        "modules": {module.__name__: {k: id(v) for k, v in vars(module).items()} for module in modules},
        "classes": {
            cls.__name__: {k: id(v) for k, v in vars(cls).items() if k != "__annotations__"} for cls in classes
        },
        "hooks": [len(hooks) for hooks in vars(torch.nn.modules.module).values() if isinstance(hooks, dict)],
        "settings": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_rng_state().tolist()),
    }


def test_nothing_global_is_changed():
    used = {name: build(name) for name in ("llama", "gemma3")}
    for model in used.values():  # what the libraries set up at their first use is not ours
        logits(model)
        model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=2, do_sample=False)
    before = global_state()
    for model in used.values():
        segattn.enable(model, Fixed(ROWS))
        assert global_state() == before
        logits(model)
        model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=2, do_sample=False)
        assert global_state() == before
        with segattn.causal(model):
            assert global_state() == before
        segattn.disable(model)
    assert global_state() == before


def test_only_names_of_our_own_were_added_to_transformers():
    """A fresh process: what importing and enabling adds to the tables."""
    script = """
import transformers
from transformers import AttentionInterface, AttentionMaskInterface
tables = (AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping)
before = [dict(table) for table in tables]
import segattn.modeling
for table, old in zip(tables, before):
    assert all(table[name] is value for name, value in old.items())
    assert all(name.startswith("segattn_") for name in set(table) - set(old)), set(table) - set(old)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
