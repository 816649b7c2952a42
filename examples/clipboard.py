"""One clipboard for host and guest: what is copied on one side can be pasted on the other.

    guest$ python3 clipboard.py org.example.clipboard
    host$  PYTHONPATH=src python3 examples/clipboard.py unix:/run/vm/clipboard

Text only.  The clipboard is reached by programs that desktops have: wl-copy and wl-paste, xclip, or xsel; with
--file PATH the content of a file is the clipboard, for machines without a desktop and for tests.
"""

import argparse
import asyncio
import shutil
import struct
import subprocess

try:
    from virtserial.client import AsyncStream, HostStream
    from virtserial.guest import open_port
except ImportError:  # in a guest there is the guest's library alone
    from virtserial_guest import AsyncStream, open_port

PROGRAMS = [
    (["wl-paste", "--no-newline"], ["wl-copy"]),
    (["xclip", "-selection", "clipboard", "-out"], ["xclip", "-selection", "clipboard", "-in"]),
    (["xsel", "--clipboard", "--output"], ["xsel", "--clipboard", "--input"]),
]
INTERVAL = 0.5
LIMIT = 1 << 20
LENGTH = struct.Struct("<4sI")
MARK = b"CLIP"


class DesktopClipboard:
    def __init__(self):
        found = [pair for pair in PROGRAMS if shutil.which(pair[0][0])]
        if not found:
            raise SystemExit("there is no wl-paste, xclip or xsel here: install one, or say --file PATH")
        self.read, self.write = found[0]

    def get(self):
        return subprocess.run(self.read, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout[:LIMIT]

    def set(self, text):
        subprocess.run(self.write, input=text)


class FileClipboard:
    def __init__(self, path):
        self.path = path

    def get(self):
        try:
            with open(self.path, "rb") as file:
                return file.read(LIMIT)
        except FileNotFoundError:
            return b""

    def set(self, text):
        with open(self.path, "wb") as file:
            file.write(text)


class Sharing:
    def __init__(self, clipboard, port):
        self.clipboard, self.port = clipboard, port
        self.last = clipboard.get()

    async def copies(self):
        """What is copied here goes there."""
        while True:
            text = await asyncio.to_thread(self.clipboard.get)
            if text != self.last:
                await self.port.write(LENGTH.pack(MARK, len(text)) + text)
                self.last = text
            await asyncio.sleep(INTERVAL)

    async def pastes(self):
        """What comes from there can be pasted here; what is no clipboard is passed over up to the next mark."""
        head = b""
        while True:
            more = await self.port.readexactly(LENGTH.size - len(head))
            if not more:
                return
            head += more
            mark, length = LENGTH.unpack(head) if len(head) == LENGTH.size else (b"", 0)
            if mark != MARK or length > LIMIT:
                head = head[1:]
                continue
            head = b""
            text = await self.port.readexactly(length)
            if len(text) == length:
                self.last = text
                await asyncio.to_thread(self.clipboard.set, text)


async def share(clipboard, stream):
    async with AsyncStream(stream) as port:
        sharing = Sharing(clipboard, port)
        while True:
            await port.wait_connected()
            tasks = [asyncio.ensure_future(each) for each in (sharing.copies(), sharing.pastes())]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await port.wait_disconnected()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Share the clipboard between host and guest over a port.")
    parser.add_argument("port", help="in a guest the port's name, on the host unix:PATH or tcp:HOST:PORT")
    parser.add_argument("--file", help="use a file in place of a desktop's clipboard")
    options = parser.parse_args()
    is_host = options.port.startswith(("unix:", "tcp:", "pty:"))
    clipboard = FileClipboard(options.file) if options.file else DesktopClipboard()
    asyncio.run(share(clipboard, HostStream(options.port) if is_host else open_port(options.port)))
