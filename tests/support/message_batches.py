"""Whole messages in a buffer, handled one after the other as MessageStream does, without a socket."""

from virtserial.vfio_user.wire import HEADER_SIZE, Header


def handle_batch(server, buffer, end):
    """Handle every whole message in `buffer[:end]`; return how many bytes they took, and the replies in order."""
    view, start, replies = memoryview(buffer), 0, []
    while True:
        start = server.ring_doorbells(buffer, start, end)
        if end - start < HEADER_SIZE:
            return start, replies
        header = Header.unpack_from(buffer, start)
        server.check_header(header)
        if end - start < header.size:
            return start, replies
        answer = server.handle(header, view[start + HEADER_SIZE : start + header.size], [])
        if answer is not None:
            replies.append(answer)
        start += header.size
