import os
import signal
import threading

import pytest

from featherweight.training.checkpoint import Checkpoints
from featherweight.training.events import Callback
from featherweight.training.interrupt import TrainingInterrupted, stop_on_signals
from featherweight.training.run import train
from featherweight.training.task import tasks


class SendSignal(Callback):
    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_step(self, event):
        if event.step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(recipe, tmp_path, number):
    handler = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted, match="interrupted after step 3; checkpoint .*step-00000003 is complete"):
        train(recipe(), out=tmp_path / "run", callbacks=[SendSignal(number, 3)])
    assert Checkpoints(tmp_path / "run" / "checkpoints").latest().step == 3
    assert signal.getsignal(number) is handler
    resumed = train(recipe(), out=tmp_path / "run", resume=True, callbacks=[])
    through = train(recipe(), out=tmp_path / "through", callbacks=[])
    assert resumed.summary.held_out == through.summary.held_out
    assert resumed.summary.training_loss == through.summary.training_loss


def test_the_second_signal_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal was ignored")


def test_a_thread_that_cannot_receive_signals_trains_all_the_same():
    requests = []

    def body():
        with stop_on_signals() as stop:
            requests.append(stop.requested)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert requests == [False]


def test_the_first_signal_is_answered_at_once_on_standard_error(capfd):
    with stop_on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        out, err = capfd.readouterr()
    assert out == "" and "Stopping after the current step or evaluation; the same signal again stops at once" in err


def test_a_signal_while_the_model_is_saved_does_not_lose_the_run(recipe, tmp_path, monkeypatch):
    task = tasks.get("regression")
    save = task.save_model

    def save_and_signal(self, model, folder):
        os.kill(os.getpid(), signal.SIGINT)
        save(self, model, folder)

    monkeypatch.setattr(task, "save_model", save_and_signal)
    assert train(recipe(), out=tmp_path / "run", callbacks=[]).summary.steps == 8
    assert (tmp_path / "run" / "model" / "weights.pt").is_file()
