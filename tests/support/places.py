"""Where this source tree is, and the environment in which a process runs from it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE)}
