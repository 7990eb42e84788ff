"""An MLflow server on this machine that can go away and come back."""

import contextlib
import socket
import time
from pathlib import Path

from marked import Marked


class MlflowServer:
    """An MLflow server that can be killed and started again on the same port and database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.marked = Marked()

    def start(self) -> None:
        words = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        words += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--workers", "1"]
        words += ["--artifacts-destination", str(self.folder / "artifacts")]
        # Its seven processes for jobs of its own would take the run's cores.
        self.marked.start(words, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")

    def wait(self, timeout_s: float = 120) -> None:
        """Until it answers."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            time.sleep(0.2)
        raise TimeoutError(f"no MLflow server within {timeout_s:.0f} s")

    def kill(self) -> None:
        self.marked.kill()
