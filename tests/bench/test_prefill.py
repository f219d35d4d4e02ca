import pytest
import torch

import segattn
from segattn.bench.errors import BenchError
from segattn.bench.models import check_length, load_model, random_ids, shape_of, single_layer, variants
from segattn.bench.prefill import measure_prefill, prefill_cell
from segattn.bench.timing import Effort

ONCE = Effort(0.0, least=1, most=1, warm_up=False)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models():
    return variants(single_layer(torch.float32, CPU, tiny=True))


def test_variants_share_their_weights_and_nothing_else(models):
    assert [segattn.is_enabled(models[name]) for name in ("causal", "segments", "dense")] == [False, True, True]
    weights = [{id(weight) for weight in model.parameters()} for model in models.values()]
    assert weights[0] == weights[1] == weights[2]
    assert models["causal"].model.layers[0] is not models["segments"].model.layers[0]


def test_a_prefill_is_checked_timed_and_bounded(models):
    row = measure_prefill(models, ("causal", "segments", "dense"), prefill_cell("tiny", 40, "25/70/5"), ONCE)
    assert row.errors["segments"] < 1e-5
    causal, full, bound = (row.figures[name][0] for name in ("causal", "one full attention", "bound"))
    # 10 tokens see 10, 28 see 38, two see 39 and 40.
    scores = 10 * 10 + 28 * 38 + 39 + 40
    assert row.facts["scores"]["segments"] == scores
    assert bound == pytest.approx(causal + full * (scores - 40 * 41 // 2) / 1600)


def test_a_model_that_ignores_segments_is_refused(models):
    with (
        pytest.raises(BenchError, match="segments \\(against the dense mask\\) differs"),
        segattn.causal(models["segments"]),
    ):
        measure_prefill(models, ("causal", "segments", "dense"), prefill_cell("tiny", 40, "25/70/5"), ONCE)


def test_the_shape_is_read_from_the_model(models):
    shape = shape_of(models["causal"])
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_size) == (1, 4, 2, 16)
    assert shape.linear == 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128


def test_too_many_tokens_are_refused(models):
    check_length(models["causal"], 131072)
    with pytest.raises(BenchError, match="the length is 131073, but the model holds at most 131072"):
        random_ids(models["causal"], 131073)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(BenchError, match="cannot be loaded"):
        load_model(str(tmp_path), torch.float32, CPU)
