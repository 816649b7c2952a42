"""Who gets a turn: ports take turns, control messages go first, and what goes wrong in a turn ends here."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from virtserial.errors import AccessInterrupted, AccessPending, AddressError, DriverError

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.console.seams import Scheduler, Subject, TurnOwner

PORTS_PER_TURN: Final = 4


def _raise(error: Exception) -> None:
    raise error


class Turns:
    """The turns of one device; each does a bounded amount of work.

    A subject asks once: it is not in the queue twice.

    A turn that needs memory which its VMM has not given yet (AccessPending) is dropped; nobody else has a turn until
    `repeat`, then that turn comes first, and finds what it had read.

    Args:
        scheduler: calls `turn`.
        owner: the device.

    Attributes:
        started: counts the turns.
        attempt: changes when what a turn has read is of no use any more: it is done, or will not be repeated.
    """

    def __init__(self, scheduler: Scheduler, owner: TurnOwner) -> None:
        self._scheduler = scheduler
        self._look = scheduler.look
        self._owner = owner
        self._first: deque[Subject] = deque()
        self._ready: deque[Subject] = deque()
        self._asked = False
        self._faulted: set[Subject] = set()
        self._retried: set[Subject] = set()
        self._dropped: Subject | None = None
        self._answered = False
        self.started = 0
        self.attempt = 0

    def schedule(self, subject: Subject) -> None:
        """Give a subject a turn behind those that have asked already."""
        self._ready.append(subject)
        self._ask()

    def at_once(self, subject: Subject, turn: Callable[[], None]) -> bool:
        """Give a subject a short turn without a place in the queue, if nobody else has anything to do: whether it had.

        Call it from where the loop tells of something, never from a turn.  It ends as any turn does.
        """
        owner = self._owner
        if (
            self._asked
            or not self._look.at_leisure
            or owner.paused
            or not owner.live
            or self._faulted
            or self._dropped is not None
        ):
            return False
        try:
            self._do(subject, turn)
        except Exception as error:
            # The scheduler knows what a mistake of ours stops, and that it is this device alone.
            self._scheduler.call_at(self._scheduler.now(), partial(_raise, error))
        return True

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
        if subject is self._dropped:
            self._forget_dropped()

    def _forget_dropped(self) -> None:
        self._dropped = None
        self.attempt += 1
        self._ask()

    @property
    def waits(self) -> bool:
        """Whether a dropped turn waits for memory."""
        return self._dropped is not None

    def repeat(self) -> None:
        """What a dropped turn has waited for is there."""
        if self._dropped is not None:
            self._answered = True
            self._ask()

    def clear(self) -> None:
        """Forget all: the device was reset."""
        self.drop_all()
        self._faulted.clear()
        self._retried.clear()

    def drop_all(self) -> None:
        """Drop every turn; one that waits for memory has moved nothing that is not committed."""
        for subject in (*self._first, *self._ready):
            subject.forget_work()
        self._first.clear()
        self._ready.clear()
        self._dropped = None
        self.attempt += 1

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
            self.drop_all()
            return
        if self._dropped is not None:
            if not self._answered:
                return
            subject, self._dropped = self._dropped, None
            subject.schedule_all()
            self._turn_of(subject, subject.turn)
            if self._dropped is not None:
                return
        ready = self._ready
        self._serve_first()
        for _ in range(min(len(ready), PORTS_PER_TURN)):
            if not ready or self._dropped is not None or not owner.live:
                break
            subject = ready.popleft()
            self._turn_of(subject, subject.turn)
            # What this port has to tell by a control message the guest learns before what others receive.
            self._serve_first()
        if (ready or self._first) and self._dropped is None:
            self._ask()

    def _serve_first(self) -> None:
        first = self._first
        for _ in range(len(first)):
            if not first or self._dropped is not None or not self._owner.live:
                break
            subject = first.popleft()
            self._turn_of(subject, subject.turn)

    def _turn_of(self, subject: Subject, turn: Callable[[], None]) -> None:
        if subject in self._faulted:
            # It waits for its second try, which looks at everything again.
            subject.forget_work()
        else:
            self._do(subject, turn)

    def _do(self, subject: Subject, turn: Callable[[], None]) -> None:
        self.started += 1
        try:
            turn()
            self.attempt += 1
        except AccessPending:
            self._dropped, self._answered = subject, False
            for queue in subject.queues:
                # Repeated, it will not know what it had returned.
                if queue.record.signalled != queue.record.position:
                    self._owner.interrupt(queue)
        except AccessInterrupted:
            self.attempt += 1
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
