"""The example that trains from zero: its items, its rows, and a few steps of it."""

import itertools
import json

import pytest
import torch
from examples.from_scratch import tables, training
from examples.from_scratch.__main__ import main
from examples.from_scratch.arms import ARMS
from examples.from_scratch.checkpoint import make_model
from examples.from_scratch.encoding import load_data
from examples.from_scratch.report import draw_curves, interval, report
from examples.from_scratch.results import add_row, has_row, read_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle import loop_mask

TINY = training.Effort(steps=4, batch_size=8, train_items=96, held_out_tables=5, curve_items=15, curve_points=2)


def power(table, hops):
    """Where steps lead, by powers of the table's matrix."""
    matrix = torch.zeros(len(table), len(table), dtype=torch.int64)
    matrix[torch.arange(len(table)), torch.tensor(table)] = 1
    return tuple(torch.linalg.matrix_power(matrix.double(), hops).argmax(-1).tolist())


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32))
def test_answers_are_right_and_tables_are_one_ring(seed):
    for item in itertools.islice(tables.draw_items(seed), 6):
        assert item.answer == power(item.table, item.hops)[: tables.ASKED]
        # One ring: only after as many steps as there are nodes is every node back where it was.
        identity = tuple(range(tables.NODES))
        assert power(item.table, tables.NODES) == identity
        assert all(power(item.table, steps) != identity for steps in range(1, tables.NODES))


def test_an_answer_worked_out_by_hand():
    item = tables.Item((3, 5, 0, 7, 1, 2, 4, 6), 3)  # the docstring's
    assert item.answer == (6, 0, 7, 4)
    sample = tables.to_sample(item, copies=2)
    assert sample.messages[0]["content"] == "3 5 0 7 1 2 4 6 3 5 0 7 1 2 4 6"
    assert (sample.messages[1]["content"], sample.answer) == ("thrice", "6 0 7 4")


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 400), st.integers(1, 400))
def test_no_held_out_table_is_learned_from(train, held_out):
    learned, checked = tables.split_items(train, held_out)
    assert len(learned) == train
    assert len({item.table for item in checked}) == held_out
    assert not {item.table for item in learned} & {item.table for item in checked}


def test_half_of_the_entries_point_ahead():
    """So that neither reading order has an advantage but for the mask."""
    items = list(itertools.islice(tables.draw_items(0), 2000))
    ahead = sum(target > node for item in items for node, target in enumerate(item.table))
    assert ahead / (len(items) * tables.NODES) == pytest.approx(0.5, abs=0.02)


def test_ruling_out_gives_what_counting_gives():
    """Once, first entry: one of the seven other nodes; further entries rule out the earlier ones too."""
    items = [item for item in itertools.islice(tables.draw_items(0), 30_000) if item.hops == 1]
    # Entry i: the node itself is ruled out already where an earlier entry was i.
    expected = [1 / len(set(range(8)) - {place, *item.answer[:place]}) for item in items for place in range(4)]
    found = tables.answers_by_ruling_out(items)
    assert found == pytest.approx(sum(expected) / len(expected), abs=0.01)


@pytest.mark.parametrize("task", tables.COPIES)
def test_labels_are_on_answers_and_segments_on_messages(task):
    data = load_data(task, train_items=30, held_out_tables=3)
    width = tables.NODES * tables.COPIES[task] + 2  # header, table, end marker
    assert data.train.input_ids.shape == (30, width + 3 + 1 + tables.ASKED + 1)
    assert "<|unknown|>" not in data.tokenizer.decode(data.held_out.input_ids.flatten())
    for ids, labels in zip(data.train.input_ids.tolist(), data.train.labels.tolist(), strict=True):
        assert labels == [-100] * (width + 4) + ids[width + 4 :]
    segments = data.segmenter.segment_ids(data.train.input_ids)
    assert segments.tolist() == [[0] * width + [1] * 3 + [-1] * 6] * 30
    prefix = data.segmenter.with_policy("prefix").segment_ids(data.train.input_ids)
    assert prefix.tolist() == [[0] * (width + 3) + [-1] * 6] * 30


@pytest.mark.parametrize("arm", ["causal", "segments", "prefix"])
def test_the_first_loss_equals_that_of_a_stock_model_under_a_hand_built_mask(arm):
    import segattn

    data = load_data("shown once", train_items=6, held_out_tables=1)
    segmenter = data.segmenter.with_policy(ARMS[arm].policy)
    ids = segmenter.segment_ids(data.train.input_ids)
    model = segattn.enable(make_model(data.tokenizer, 0), segmenter)
    with torch.no_grad():
        loss = training.answer_loss(model, data.train, ids)
        stock = make_model(data.tokenizer, 0)
        mask = loop_mask(ids.tolist())
        bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        expected = stock(data.train.input_ids, attention_mask=bias, labels=data.train.labels).loss
    assert float(loss) == pytest.approx(float(expected), abs=1e-5)


def test_arms_of_a_seed_begin_alike_and_rows_are_taken_up(tmp_path):
    file = tmp_path / "rows.jsonl"
    for arm in ARMS:
        cell = training.Cell("shown once", arm, 3e-3, seed=0)
        assert not has_row(file, cell, TINY)
        add_row(file, training.run_cell(cell, TINY))
        assert has_row(file, cell, TINY)
    rows = read_rows(file)
    assert [[point["step"] for point in row["curve"]] for row in rows] == [[0, 2, 4]] * 4
    # The same weights: under one mask, so do the arms of segments.
    assert rows[1]["curve"][0] == rows[2]["curve"][0] != rows[0]["curve"][0]
    assert rows[1]["curve"][-1] != rows[2]["curve"][-1]
    with file.open("a") as torn:
        torn.write('{"cell": {"ta')
    assert read_rows(file) == rows
    add_row(file, rows[0])
    assert read_rows(file) == [*rows, rows[0]]
    assert "segments, opened gradually" in report(rows)
    draw_curves(rows, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_interval_is_students():
    mean, half = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (mean, half) == (3.0, pytest.approx(2.776 * 1.5811 / 5**0.5, abs=1e-3))


def test_the_command_trains_what_is_missing_and_no_more(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("examples.from_scratch.__main__.QUICK", TINY)
    threads = torch.get_num_threads()
    arguments = ["--quick", "--results", str(tmp_path), "--task", "shown once", "--arm", "causal", "segments"]
    try:
        main(arguments)
        main(arguments)
    finally:
        torch.set_num_threads(threads)
    lines = [json.loads(line) for line in (tmp_path / "quick.jsonl").read_text().splitlines()]
    assert [line["cell"]["arm"] for line in lines] == ["causal", "segments"]
    assert capsys.readouterr().out.count("| shown once | causal | 1 |") == 2
