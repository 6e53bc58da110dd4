"""A server of `featherweight.serving` in a thread of this process, on a free port."""

import contextlib
import threading
import time

import uvicorn

from featherweight.guard.reading import all_stops
from featherweight.serving.app import make_app
from featherweight.serving.options import ServeOptions


@contextlib.contextmanager
def running(model, tokenizer, guard=None, adapters=None, **options):
    """Yield the server (its `url`, `service` and `stop()`), and end it afterwards."""
    settings = ServeOptions(port=0, **options)
    stops = all_stops(model, tokenizer)
    app = make_app(model, tokenizer, settings, guard=guard, stop_token_ids=stops, adapters=adapters)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", access_log=False, timeout_graceful_shutdown=20)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    server.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.service = app.state.service

    def stop():
        server.should_exit = True
        thread.join(30)

    server.stop = stop
    try:
        yield server
    finally:
        stop()
