"""Signals during training: the first one asks, the second one ends at once."""

import os
import signal
from types import SimpleNamespace

import pytest

from segattn.training.interrupt import GracefulStop

ONE_PROCESS = SimpleNamespace(world_size=1)


@pytest.fixture(autouse=True)
def keyboard_interrupts():
    """Ctrl-C raises, also where the tests run in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def flags():
    return SimpleNamespace(should_training_stop=False, should_save=False, should_log=True, should_evaluate=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_after_the_step_with_a_checkpoint(number, capfd):
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with GracefulStop() as stop:
        control = flags()
        stop.on_step_end(ONE_PROCESS, SimpleNamespace(epoch=0.5), control)
        assert not control.should_training_stop
        os.kill(os.getpid(), number)
        assert stop.requested
        stop.on_step_end(ONE_PROCESS, SimpleNamespace(epoch=0.5), control)
        assert control.should_training_stop
        assert control.should_save
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert "stopping after this step" in capfd.readouterr().err


def test_a_second_signal_ends_at_once():
    with GracefulStop():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_belongs_to_the_end_of_an_epoch_is_left_out_before_it():
    with GracefulStop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        for epoch, left_out in ((1.5, True), (2.0, False)):
            control = flags()
            stop.on_epoch_end(ONE_PROCESS, SimpleNamespace(epoch=epoch), control)
            assert control.should_evaluate == (not left_out)
