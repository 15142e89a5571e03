"""Hold a training at a checkpoint, so that a test can act at that point on a fast machine and on a slow one."""

import os
import subprocess
import time
from pathlib import Path


class Gate:
    """A training that was started with `environment` waits after its first checkpoint of `step` or later.

    It continues when the gate is opened, or when it gets a signal.
    """

    def __init__(self, step: int) -> None:
        self._file = Path(f"gate-{step}").absolute()
        self.environment = os.environ | {
            "PYTHONPATH": str(Path(__file__).parent / "gated"),
            "GVC_TEST_GATE": f"{step}:{self._file}",
        }

    def wait(self, process: subprocess.Popen) -> None:
        """Wait until the training of `process` has arrived at the gate."""
        until = time.monotonic() + 300
        while not Path(f"{self._file}.reached").exists():
            assert process.poll() is None, f"ended before the gate: {process.communicate()}"
            assert time.monotonic() < until, "did not arrive at the gate in 300 s"
            time.sleep(0.01)

    def open(self) -> None:
        """Let the training continue."""
        self._file.touch()
