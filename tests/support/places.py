"""Where this source tree is, and the environment in which a process runs from it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
REGISTRY = f"{tempfile.gettempdir()}/virtserial-tests-{os.getuid()}"
"""Where processes of tests are listed: not among the machine's own."""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "VIRTSERIAL_REGISTRY": REGISTRY}
