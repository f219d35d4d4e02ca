from segattn.serving.limits import StepLimits


def test_the_longest_segment_leaves_a_token_for_every_other_request():
    assert StepLimits(2048, 256).longest_segment == 1793
    assert StepLimits(100, 1).longest_segment == 100
    assert StepLimits(100, 1, 40).longest_segment == 40
    assert StepLimits(30, 5, 40).longest_segment == 26


def test_a_segment_that_is_too_long_is_refused_with_the_number_to_set():
    limits = StepLimits(64, 8)
    assert limits.problem(()) is None
    assert limits.problem(((0, 57),)) is None
    text = limits.problem(((0, 10), (10, 70)))
    assert "tokens 10 to 70" in text
    assert "up to 57 tokens" in text
    assert "--max-num-batched-tokens 67" in text
    assert StepLimits(67, 8).problem(((10, 70),)) is None  # what it said is enough


def test_the_threshold_of_long_prefills_is_named_too():
    text = StepLimits(64, 1, 20).problem(((0, 30),))
    assert "--long-prefill-token-threshold 30" in text
    assert StepLimits(64, 1, 30).problem(((0, 30),)) is None
