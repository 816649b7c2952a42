"""Commands that take several requests to QEMU: generators that yield a request and get its answer; no I/O.

    def _query_status(machine: ..., ...) -> Steps[object]:
        status = yield Ask("query-status", {})
        ...

QEMU's refusal is raised at the `yield`, as a QmpError.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

from virtserial.errors import VirtserialError
from virtserial.monitor.qmp import QmpError, internal_error
from virtserial.monitor.qmp_client import Ask, MonitorGoneError


class Until(NamedTuple):
    """A step that is no request to QEMU.

    Attributes:
        subscribe: is given what to call, once, with the result.
    """

    subscribe: Callable[[Callable[[object], None]], None]


T = TypeVar("T")
Steps = Generator[Ask | Until, Any, T]


def run_steps(
    steps: Steps[object], ask: Callable[[Ask, Callable[[object], None]], None], done: Callable[[object], None]
) -> None:
    """Run a command's steps, one for each answer of QEMU.

    Args:
        ask: sends a request and calls back with its result or a QmpError.
        done: called at the end with the command's result or a QmpError; not at all if QEMU ends meanwhile.
    """

    def resume(result: object) -> None:
        try:
            asked = steps.throw(result) if isinstance(result, QmpError) else steps.send(result)
        except StopIteration as end:
            done(end.value)
        except MonitorGoneError:
            pass  # As with QEMU alone: the client sees its connection close, not an answer.
        except QmpError as error:
            done(error)
        except VirtserialError as error:
            done(QmpError(str(error)))
        except Exception as error:
            done(internal_error(error, "a monitor command"))
        else:
            match asked:
                case Until(subscribe):
                    subscribe(resume)
                case _:
                    ask(asked, resume)

    resume(None)
