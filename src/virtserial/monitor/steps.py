"""Commands that take several requests to QEMU: generators that yield what to ask and get the answer, without I/O.

    def _query_status(machine: ..., ...) -> Steps[object]:
        status = yield Ask("query-status", {})
        ...

What QEMU refuses is raised where it was asked, as a QmpError.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, TypeVar

from virtserial.errors import VirtserialError
from virtserial.monitor.qmp import QmpError
from virtserial.monitor.qmp_client import Ask, MonitorGoneError

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("virtserial.monitor")

T = TypeVar("T")
Steps = Generator[Ask, Any, T]


def run_steps(
    steps: Steps[object], ask: Callable[[Ask, Callable[[object], None]], None], done: Callable[[object], None]
) -> None:
    """Go through the steps of a command, now and whenever QEMU has answered.

    Args:
        ask: asks QEMU, and calls back with what it returns or a QmpError.
        done: called at the end with what the command returns or a QmpError; not at all if QEMU ends meanwhile.
    """

    def go_on(result: object) -> None:
        try:
            asked = steps.throw(result) if isinstance(result, QmpError) else steps.send(result)
        except StopIteration as end:
            done(end.value)
        except MonitorGoneError:
            pass  # QEMU's own clients see the end of their connection instead of an answer, too.
        except QmpError as error:
            done(error)
        except VirtserialError as error:
            done(QmpError(str(error)))
        except Exception:
            log.exception("internal error in a monitor's command")
            done(QmpError("internal error of virtserial; its log tells more"))
        else:
            ask(asked, go_on)

    go_on(None)
