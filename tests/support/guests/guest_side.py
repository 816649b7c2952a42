"""What tests run inside the guest, as sources for a GuestSession."""

from __future__ import annotations

PORT_HELPERS = """
import fcntl, select, signal
NAMES = {select.POLLIN: 'IN', select.POLLOUT: 'OUT', select.POLLHUP: 'HUP', select.POLLERR: 'ERR'}

def open_port(name, flags=os.O_RDWR):
    path = '/dev/virtio-ports/' + name
    until(lambda: os.path.exists(path))
    return os.open(path, flags)

def events(fd):
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT)
    ready = poll.poll(0)
    return {name for bit, name in NAMES.items() if ready and ready[0][1] & bit}

def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError('it did not happen')
        time.sleep(0.005)

def debug(name, field):
    port = os.path.basename(os.readlink('/dev/virtio-ports/' + name))
    with open('/sys/kernel/debug/virtio-ports/' + port) as file:
        for line in file:
            key, _, value = line.partition(':')
            if key == field:
                return value.strip()

def read_exactly(fd, count):
    data = b''
    while len(data) < count:
        piece = os.read(fd, count - len(data))
        if not piece:
            break
        data += piece
    return data

def fill(fd):
    os.set_blocking(fd, False)
    count = 0
    try:
        while True:
            count += os.write(fd, bytes([count // 4096 % 251]) * 4096)
    except BlockingIOError:
        return count
"""

# busybox's head and tee work in small pieces; cat, dd and sha1sum do not.
TRANSFER = """
exec 3<>{port}
head -c {block_bytes} /dev/urandom >/tmp/{name}.block
sent() {{ for n in $(seq {repeat}); do cat /tmp/{name}.block; done; }}
sent >&3 & writer=$!
dd bs=64k count={expected_blocks} iflag=fullblock <&3 2>/tmp/{name}.dd | sha1sum >/tmp/{name}.received
wait $writer || {{ echo "the writer failed"; exit 1; }}
grep -q '^{expected_blocks}+0 records out' /tmp/{name}.dd || {{ cat /tmp/{name}.dd; exit 1; }}
sent | sha1sum | cut -c1-40
cut -c1-40 /tmp/{name}.received
rm /tmp/{name}.*
"""
