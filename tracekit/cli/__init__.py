"""The command `tracekit`: one small file per verb."""

import os

# Idle OpenMP threads sleep instead of spinning. Beside a simulator, a second process or a noisy neighbour, spinning
# threads take the cores that the work is waiting for; results do not depend on it. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from tracekit.cli.app import main

__all__ = ["main"]
