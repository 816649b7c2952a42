"""Who gets a turn: ports take turns, control messages go first, and what goes wrong in a turn ends here."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from virtserial.errors import AccessInterrupted, AddressError, DriverError

if TYPE_CHECKING:
    from virtserial.console.seams import Scheduler, Subject, TurnOwner

PORTS_PER_TURN: Final = 4


class Turns:
    """The turns of one device; each does a bounded amount of work.

    A subject asks once: it is not in the queue twice.

    Args:
        scheduler: calls `turn`.
        owner: the device.
    """

    def __init__(self, scheduler: Scheduler, owner: TurnOwner) -> None:
        self._scheduler = scheduler
        self._owner = owner
        self._first: list[Subject] = []
        self._ready: deque[Subject] = deque()
        self._asked = False
        self._faulted: set[Subject] = set()
        self._retried: set[Subject] = set()

    def schedule(self, subject: Subject) -> None:
        """Give a subject a turn behind those that have asked already."""
        self._ready.append(subject)
        self._ask()

    def schedule_first(self, subject: Subject) -> None:
        """Give a subject a turn before all ports."""
        self._first.append(subject)
        self._ask()

    def remove(self, subject: Subject) -> None:
        """Forget a subject."""
        subject.forget_work()
        if subject in self._ready:
            self._ready.remove(subject)
        self._faulted.discard(subject)
        self._retried.discard(subject)

    def clear(self) -> None:
        """Forget all: the device was reset."""
        self._drop_all()
        self._faulted.clear()
        self._retried.clear()

    def _drop_all(self) -> None:
        for subject in (*self._first, *self._ready):
            subject.forget_work()
        self._first.clear()
        self._ready.clear()

    def _ask(self) -> None:
        if not self._asked:
            self._asked = True
            self._scheduler.add_turn(self.turn)

    def turn(self) -> None:
        """Do a bounded amount of the work that waits; ask for another turn if there is more.

        An error of the driver ends here, as a failure of this device.
        """
        self._asked = False
        owner = self._owner
        if owner.paused or not owner.live:
            self._drop_all()
            return
        if self._first:
            first, self._first = self._first, []
            for subject in first:
                self._turn_of(subject)
        ready = self._ready
        for _ in range(min(len(ready), PORTS_PER_TURN)):
            self._turn_of(ready.popleft())
            if not ready or not owner.live:
                break
        if ready or self._first:
            self._ask()

    def _turn_of(self, subject: Subject) -> None:
        if subject in self._faulted:
            # It waits for its second try, which looks at everything again.
            subject.forget_work()
            return
        try:
            subject.turn()
        except AccessInterrupted:
            if self._owner.live:
                # It may have been on the way to interrupt for what it had returned.
                for queue in subject.queues:
                    self._owner.interrupt(queue)
                subject.schedule_all()
        except AddressError as error:
            self._address_fault(subject, error)
        except DriverError as error:
            self._owner.fail(error)
        else:
            if self._retried:
                self._retried.discard(subject)

    def _address_fault(self, subject: Subject, error: AddressError) -> None:
        """The driver named memory that is not mapped.  A mapping that its VMM has sent may still be on the way to us,
        so there is one second try before the device fails."""
        if subject in self._retried or not self._owner.await_memory():
            self._owner.fail(error)
        else:
            self._faulted.add(subject)

    def retry(self) -> None:
        """The second try."""
        faulted, self._faulted = self._faulted, set()
        self._retried |= faulted
        for subject in faulted:
            subject.schedule_all()
