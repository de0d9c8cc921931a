import os
import signal
import threading

import pytest

from jointdreamer.runs.signals import ENDING, hand_on, stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_the_second_aborts(number):
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert stop.requested is None
        signal.raise_signal(number)
        assert stop.requested == number and stop.exit_status == 128 + number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", ENDING)
def test_every_signal_that_ends_a_run_asks_it_to_save(number):
    with stop_on_signals() as stop:
        signal.raise_signal(number)
        assert stop.requested == number


def test_a_warning_that_is_repeated_or_followed_by_the_end_does_not_abort():
    with stop_on_signals() as stop:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            signal.raise_signal(number)
        assert stop.exit_status == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_what_is_ignored_stays_ignored(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            signal.raise_signal(number)
        assert stop.requested is None and signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_where_all_is_saved_the_first_signal_stops_at_once(number):
    with stop_on_signals() as stop:
        with stop.at_once():
            signal.raise_signal(number)
            raise AssertionError("went on")
        assert stop.requested == number and not stop.saved


def test_a_signal_from_just_before_stops_at_once_too():
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGTERM)
        with stop.at_once():
            stop.check()
            raise AssertionError("began what was to be stopped")
        with pytest.raises(KeyboardInterrupt), stop_on_signals().__enter__().at_once():
            raise KeyboardInterrupt  # nobody's signal


def test_a_closed_stderr_does_not_keep_a_signal_from_saving(capfd):
    with stop_on_signals() as stop:
        kept = os.dup(2)
        os.close(2)
        try:
            signal.raise_signal(signal.SIGHUP)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        assert stop.requested == signal.SIGHUP


def test_a_launcher_hears_of_a_signal_once_the_run_is_saved():
    heard = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    try:
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGUSR2)
            assert stop.requested == signal.SIGUSR2 and not heard
        hand_on(signal.SIGUSR2)
        hand_on(signal.SIGTERM)  # nobody's
        assert heard == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_outside_the_main_thread_signals_are_left_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with stop_on_signals() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None] and signal.getsignal(signal.SIGINT) is before
