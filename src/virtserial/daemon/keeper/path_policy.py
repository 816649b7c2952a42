"""Which paths a monitor's client may have opened: without a limit, whoever reaches a monitor has the keeper's rights.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable


class PathPolicy:
    """Paths that are allowed, each with all that lies under it.

    Symbolic links are followed first: whoever can change links in an allowed directory can lead out of it.
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed: set[str] = set()
        self.allow(allowed)

    def allow(self, paths: Iterable[str]) -> None:
        """Allow more."""
        self._allowed.update(map(os.path.realpath, paths))

    def allowed(self) -> list[str]:
        """What is allowed."""
        return sorted(self._allowed)

    def check(self, paths: Iterable[str]) -> None:
        """
        Raises:
            ConfigError: one is not allowed; it says how to allow it.
        """
        for path in paths:
            real = os.path.realpath(path)
            if not any(os.path.commonpath((real, allowed)) == allowed for allowed in self._allowed):
                raise ConfigError(
                    f"'{path}' is not a path that a monitor may use: "
                    f"start virtserial serve with --allow-path {os.path.dirname(real)}"
                )
