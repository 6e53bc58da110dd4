"""A listener that writes down what it hears."""

from featherweight.training.events import Callback


class Record(Callback):
    def __init__(self, stop_at: int | None = None) -> None:
        self.moments: list[tuple[str, int]] = []
        self.stop_at = stop_at

    def on_start(self, event):
        self.moments.append(("start", event.step))

    def on_step(self, event):
        self.moments.append(("step", event.step))
        if event.step == self.stop_at:
            raise RuntimeError("the power is gone")

    def on_evaluate(self, event):
        self.moments.append(("evaluate", event.step))

    def on_checkpoint(self, event):
        assert (event.checkpoint / "manifest.json").is_file()
        self.moments.append(("checkpoint", event.step))

    def on_end(self, event):
        self.moments.append(("end", event.step))
