"""A dataset behind plain HTTP on this machine, at the speed of the day: what `data.path` takes as an
URL."""

import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_PART = 64 << 10


class SlowStore:
    """Serves the files of a folder; while `is_slow`, at some 100 KB a second."""

    def __init__(self, folder: Path) -> None:
        self.is_slow = False
        store = self

        class Handler(SimpleHTTPRequestHandler):
            def copyfile(self, source: Any, outputfile: Any) -> None:
                while part := source.read(_PART):
                    if store.is_slow:
                        time.sleep(_PART / 1e5)
                    try:
                        outputfile.write(part)
                    except OSError:  # the reader is gone
                        self.close_connection = True
                        return

            def log_message(self, *_: object) -> None: ...

        handler = partial(Handler, directory=str(folder))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
