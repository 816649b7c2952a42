"""Cases of the available ring, of descriptors and of indirect tables (virtio 1.3, 2.7)."""

from __future__ import annotations

import struct
from typing import Final

from virtserial.conformance.steps import (
    BAR,
    BUFFER,
    CONTROL_RX,
    CONTROL_TX,
    INDIRECT,
    NEXT,
    NOTIFY,
    RING_SIZE,
    RX,
    STATUS,
    TABLE,
    TX,
    UNMAPPED,
    WRITE,
    AvailField,
    AvailIndex,
    Case,
    Describe,
    Offer,
    Outcome,
    Put,
    Say,
    Start,
    Used,
)

OPEN: Final = Start("open")
STOPPED: Final = Outcome(stopped=True, interrupt=True, works=False, told=True)
STOPPED_AT_SETUP: Final = STOPPED._replace(interrupt=False)
"""Before DRIVER_OK nobody is to be interrupted: the driver reads the status."""
DEAF: Final = Outcome(works=False)
WITHOUT_INDIRECT: Final = 1 << 32 | 2
WITH_EVENT_IDX: Final = 1 << 32 | 1 << 28 | 1 << 29 | 2
LONG_TABLE: Final = b"".join(
    struct.pack("<QIHH", BUFFER, 1, NEXT if index < 1999 else 0, (index + 1) % 2000) for index in range(2000)
)


def send(*described: Describe) -> tuple[Describe | Offer, ...]:
    """Write descriptors, and make the chain that begins with number 0 available."""
    return (*described, Offer(TX, (0,)))


RING_CASES: Final = (
    # The available ring
    Case(
        "c01 a driver as it should be",
        "",
        (OPEN, Put(BUFFER, b"hello"), *send(Describe(TX, 0, BUFFER, 5))),
        Outcome(seen=((0, 0),), heard=b"hello"),
        TX,
    ),
    Case(
        "c02 index 1000 ahead",
        "2.7.13.3.1: no more entries than the queue has",
        (OPEN, Describe(TX, 0, BUFFER, 4), AvailIndex(TX, 1000)),
        STOPPED,
        qemu=Outcome(heard=bytes(4000)),
        reason="old entries of the ring would be sent again and again",
    ),
    Case(
        "c02b index 32768 ahead, valid entries",
        "2.7.13.3.1",
        (
            OPEN,
            *(Describe(TX, index, BUFFER, 1) for index in range(RING_SIZE)),
            *(AvailField(TX, 2 + index, index) for index in range(RING_SIZE)),
            AvailIndex(TX, 0x8000),
        ),
        STOPPED,
        qemu=Outcome(heard=bytes(32768)),
        reason="32,768 chains of a queue of 16",
    ),
    Case("c03 head out of range", "2.7.6", (OPEN, Offer(TX, (RING_SIZE,))), STOPPED),
    Case(
        "c32 same head twice",
        "2.7.13.1: a free descriptor",
        (
            OPEN,
            Put(BUFFER, b"hello"),
            Describe(TX, 0, BUFFER, 5),
            Offer(TX, (0, 0)),
            Used(TX),
        ),
        STOPPED._replace(seen=(0,)),
        qemu=Outcome(seen=(2,), heard=b"hello" * 2),
        reason="one descriptor cannot be in flight twice",
    ),
    Case(
        "c48 used buffers offered again, unused ones not",
        "2.7.13",
        (
            OPEN,
            *(Describe(RX, index, BUFFER + 64 * index, 64, WRITE) for index in range(RING_SIZE)),
            Offer(RX, tuple(range(RING_SIZE))),
            Offer(RX, (0,)),
        ),
        STOPPED,
    ),
    Case(
        "c50 used_event and flags of nonsense",
        "2.7.7, 2.7.10: ignored where not negotiated, wrap-safe",
        (
            Start("open", WITH_EVENT_IDX),
            AvailField(TX, 2 + RING_SIZE, 0x7777),
            AvailField(TX, 0, 0xFFFF),
        ),
        Outcome(),
    ),
    # Descriptors
    Case("c04 next out of range", "2.7.5", (OPEN, *send(Describe(TX, 0, BUFFER, 4, NEXT, 99))), STOPPED),
    Case(
        "c05 loop",
        "2.7.5.2: no longer than the queue",
        (
            OPEN,
            *send(Describe(TX, 0, BUFFER, 4, NEXT, 1), Describe(TX, 1, BUFFER, 4, NEXT, 0)),
        ),
        STOPPED,
    ),
    Case("c06 zero length", "2.7.5", (OPEN, *send(Describe(TX, 0, BUFFER, 0))), STOPPED),
    Case(
        "c07 address outside memory",
        "2.7.5",
        (OPEN, *send(Describe(TX, 0, UNMAPPED, 16)), Used(TX)),
        STOPPED._replace(seen=(0,)),
        qemu=Outcome(seen=(1,), heard=bytes(16)),
        reason="what is sent to the host must be the guest's memory",
    ),
    Case(
        "c08 address and length wrap",
        "2.7.5",
        (OPEN, *send(Describe(TX, 0, (1 << 64) - 8, 64)), Used(TX)),
        STOPPED._replace(seen=(0,)),
        qemu=Outcome(seen=(1,), heard=bytes(64)),
        reason="as c07",
    ),
    Case(
        "c09 4 GiB",
        "2.7.5.2",
        (OPEN, *send(Describe(TX, 0, BUFFER, 0xFFFFFFFF)), Used(TX)),
        STOPPED._replace(seen=(0,)),
    ),
    Case(
        "c09b more than 4 GiB in a chain",
        "2.7.5.2: no longer than 2^32 bytes",
        (
            OPEN,
            Describe(TX, 0, BUFFER, 0xFFFFFFFF, NEXT, 1, TABLE),
            Describe(TX, 1, BUFFER, 0xFFFFFFFF, 0, 0, TABLE),
            *send(Describe(TX, 0, TABLE, 32, INDIRECT)),
            Used(TX),
        ),
        STOPPED._replace(seen=(0,)),
    ),
    Case(
        "c10 registers as a receive buffer",
        "2.7.5: DMA into the device itself (CVE-2024-3446)",
        (
            OPEN,
            Describe(RX, 0, BAR + STATUS, 1, WRITE),
            Offer(RX, (0,)),
        ),
        STOPPED,
        qemu=Outcome(),
        reason="the address is wrong whether there is something to write or not",
    ),
    Case(
        "c11 doorbell as a control buffer",
        "2.7.5: DMA into the device itself (CVE-2024-3446)",
        (
            Start("live"),
            *(Describe(CONTROL_RX, index, BAR + NOTIFY + 4 * CONTROL_TX, 8, WRITE) for index in range(4)),
            Offer(CONTROL_RX, (0, 1, 2, 3)),
            Say(0xFFFFFFFF, 0, 1),
            Used(CONTROL_RX),
        ),
        STOPPED._replace(seen=(0,)),
        qemu=Outcome(seen=(2,)),
        reason="a device's registers are no memory; a message must not be lost there",
    ),
    Case(
        "c21 writable before readable",
        "2.7.4.2",
        (
            OPEN,
            *send(Describe(TX, 0, BUFFER, 4, NEXT | WRITE, 1), Describe(TX, 1, BUFFER, 4)),
        ),
        STOPPED,
    ),
    Case(
        "c22 writable buffer in a transmitq",
        "5.3.6",
        (OPEN, *send(Describe(TX, 0, BUFFER, 4, WRITE))),
        Outcome(seen=((0, 0),)),
        TX,
    ),
    # Indirect tables
    Case("c12 indirect table of no bytes", "2.7.5.3.1", (OPEN, *send(Describe(TX, 0, BUFFER, 0, INDIRECT))), STOPPED),
    Case("c13 indirect table of 17 bytes", "2.7.5.3.1", (OPEN, *send(Describe(TX, 0, BUFFER, 17, INDIRECT))), STOPPED),
    Case(
        "c14 indirect inside indirect",
        "2.7.5.3.1",
        (
            OPEN,
            Put(BUFFER, b"hell"),
            Describe(TX, 0, TABLE + 0x100, 16, INDIRECT, 0, TABLE),
            Describe(TX, 0, BUFFER, 4, 0, 0, TABLE + 0x100),
            *send(Describe(TX, 0, TABLE, 16, INDIRECT)),
            Used(TX),
        ),
        STOPPED._replace(seen=(0,)),
        qemu=Outcome(seen=(1,), heard=struct.pack("<QII", BUFFER, 4, 0)),
        reason="the inner table itself would be sent as data",
    ),
    Case(
        "c15 indirect with next",
        "2.7.5.3.1",
        (
            OPEN,
            Put(BUFFER, b"hell"),
            Describe(TX, 0, BUFFER, 4, 0, 0, TABLE),
            *send(Describe(TX, 0, TABLE, 16, INDIRECT | NEXT, 1), Describe(TX, 1, BUFFER, 4)),
            Used(TX),
        ),
        STOPPED._replace(seen=(0,)),
        qemu=Outcome(seen=(1,), heard=b"hell"),
        reason="the chain is ambiguous",
    ),
    Case(
        "c16 direct descriptors, then an indirect one",
        "2.7.5.3.2: the device MUST handle it",
        (
            OPEN,
            Put(BUFFER, b"AAAABBBB"),
            Describe(TX, 0, BUFFER + 4, 4, 0, 0, TABLE),
            *send(Describe(TX, 0, BUFFER, 4, NEXT, 1), Describe(TX, 1, TABLE, 16, INDIRECT)),
        ),
        Outcome(seen=((0, 0),), heard=b"AAAABBBB"),
        TX,
        qemu=Outcome(seen=((0, 0),), heard=b"AAAA" + struct.pack("<QII", BUFFER + 4, 4, 0)),
        reason="the specification demands it; QEMU sends the table as data",
    ),
    Case(
        "c17 indirect, not negotiated",
        "2.7.5.3.1",
        (
            Start("open", WITHOUT_INDIRECT),
            Put(BUFFER, b"hell"),
            Describe(TX, 0, BUFFER, 4, 0, 0, TABLE),
            *send(Describe(TX, 0, TABLE, 16, INDIRECT)),
            Used(TX),
        ),
        STOPPED._replace(seen=(0,)),
        qemu=Outcome(seen=(1,), heard=b"hell"),
        reason="a driver that does not know the feature has not meant it",
    ),
    Case(
        "c18 loop in an indirect table",
        "2.7.5.2",
        (
            OPEN,
            Describe(TX, 0, BUFFER, 4, NEXT, 1, TABLE),
            Describe(TX, 1, BUFFER, 4, NEXT, 0, TABLE),
            *send(Describe(TX, 0, TABLE, 32, INDIRECT)),
        ),
        STOPPED,
    ),
    Case(
        "c18b next outside an indirect table",
        "2.7.5.3",
        (
            OPEN,
            Describe(TX, 0, BUFFER, 4, NEXT, 7, TABLE),
            *send(Describe(TX, 0, TABLE, 32, INDIRECT)),
        ),
        STOPPED,
    ),
    Case(
        "c19 indirect table of 2000 entries",
        "2.7.5.3.1",
        (
            OPEN,
            Put(TABLE, LONG_TABLE),
            *send(Describe(TX, 0, TABLE, len(LONG_TABLE), INDIRECT)),
        ),
        STOPPED,
    ),
    Case(
        "c20 indirect table of 512 MiB",
        "2.7.5.3.1",
        (OPEN, *send(Describe(TX, 0, BUFFER, 1 << 29, INDIRECT))),
        STOPPED,
    ),
    Case(
        "c20b indirect table outside memory",
        "2.7.5.3",
        (
            OPEN,
            *send(Describe(TX, 0, UNMAPPED, 16, INDIRECT)),
            Used(TX),
        ),
        STOPPED._replace(seen=(0,)),
    ),
)
