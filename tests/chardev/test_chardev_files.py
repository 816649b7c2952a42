"""chardev file, pipe, null and ringbuf."""

import mmap
import os
import signal
import stat
import subprocess
import sys

import pytest

from virtserial.chardev.file import FileChardev
from virtserial.chardev.null import NullChardev
from virtserial.chardev.pipe import PipeChardev
from virtserial.chardev.ringbuf import RingbufChardev
from virtserial.errors import BackendError, ConfigError, StateError
from virtserial.host_end.factory import open_host_end


class TestFile:
    def test_output_replaces_what_was_there(self, house, tmp_path):
        path = tmp_path / "log"
        path.write_bytes(b"old and long")
        chardev = house.open(FileChardev("f", str(path)))
        assert chardev.filename == "file"
        port = house.port()
        assert port.events == ["opened"]
        assert port.write(b"new") == 3
        assert path.read_bytes() == b"new"

    def test_append(self, house, tmp_path):
        path = tmp_path / "log"
        path.write_bytes(b"old ")
        house.open(FileChardev("f", str(path), append=True))
        house.port().write(b"new")
        assert path.read_bytes() == b"old new"

    def test_input_then_the_end_as_with_qemu(self, house, tmp_path):
        (tmp_path / "in").write_bytes(b"i" * 200_000)
        house.open(FileChardev("f", str(tmp_path / "out"), input_path=str(tmp_path / "in")))
        port = house.port()
        house.until(lambda: "closed" in port.events)
        assert port.received == b"i" * 200_000
        assert port.end.ended

    def test_input_waits_for_the_guest(self, house, tmp_path):
        (tmp_path / "in").write_bytes(b"input")
        house.open(FileChardev("f", str(tmp_path / "out"), input_path=str(tmp_path / "in")))
        port = house.port(reads=False)
        house.settle(0.05)
        assert port.end.readable
        assert port.write(b"output") == 6
        port.read_all()
        assert port.received == b"input"

    @pytest.mark.parametrize("place", ["", "none/log", "."])
    def test_cannot_be_opened(self, house, tmp_path, place):
        path = str(tmp_path / place) if place else ""
        reason = "Is a directory" if place == "." else "No such file or directory"
        with pytest.raises(ConfigError) as caught:
            house.open(FileChardev("f", path))
        assert str(caught.value) == f"Could not open '{path}': {reason}"

    def test_wrong_input_leaves_the_output_alone(self, house, tmp_path):
        path = tmp_path / "log"
        path.write_bytes(b"precious")
        with pytest.raises(ConfigError, match="Could not open '/nonexistent': No such file"):
            house.open(FileChardev("f", str(path), input_path="/nonexistent"))
        assert path.read_bytes() == b"precious"

    def test_wrong_output_closes_the_input(self, house, tmp_path):
        (tmp_path / "in").touch()
        with pytest.raises(ConfigError, match="Could not open '/nonexistent/x'"):
            house.open(FileChardev("f", "/nonexistent/x", input_path=str(tmp_path / "in")))

    def test_fifo_without_reader_is_refused_instead_of_waiting(self, house, tmp_path):
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(ConfigError, match="it is a FIFO that nobody reads"):
            house.open(FileChardev("f", str(tmp_path / "fifo")))

    def test_reader_of_a_fifo_leaves(self, house, tmp_path):
        os.mkfifo(tmp_path / "fifo")
        reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        house.open(FileChardev("f", str(tmp_path / "fifo")))
        port = house.port()
        port.write(b"x")
        assert os.read(reader, 10) == b"x"
        os.close(reader)
        house.until(lambda: "closed" in port.events)
        assert port.write(b"lost") == 4
        assert port.end.output_discarded == 4

    def test_disk_full(self, house):
        house.open(FileChardev("f", "/dev/full"))
        house.open(FileChardev("g", "/dev/null"))
        port, other_port = house.port(), house.port()
        with pytest.raises(BackendError) as caught:
            port.write(b"x")
        assert str(caught.value) == "chardev 'f' (file '/dev/full'): cannot write: No space left on device"
        assert port.end.ended
        house.settle(0.05)
        assert "closed" not in port.events
        assert other_port.write(b"x") == 1

    def test_file_size_limit_takes_what_fits(self, tmp_path):
        """RLIMIT_FSIZE stands for a disk that fills: a short write first, then the failure."""
        program = """
import resource, signal, sys
from virtserial.chardev.file import FileChardev
from virtserial.host_end.factory import open_host_end
from virtserial.errors import BackendError
from virtserial.loop import EventLoop
class Sink:
    def connection_opened(self, chardev, *connection): self.connection = connection
loop, sink = EventLoop(), Sink()
FileChardev("f", sys.argv[1]).open(loop, sink)
end = open_host_end(*sink.connection, loop)
end.start()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
print(end.writev([memoryview(b"x" * 1500)]))
try: end.writev([memoryview(b"x" * 500)])
except BackendError as error: print(error)
"""
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "log")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        first, second = done.stdout.splitlines()
        assert first == "1000"
        assert second.endswith("cannot write: File too large")


class TestPipe:
    def test_pair(self, house, tmp_path):
        base = str(tmp_path / "p")
        os.mkfifo(base + ".in")
        os.mkfifo(base + ".out")
        chardev = house.open(PipeChardev("p", base))
        assert chardev.filename == "pipe"
        port = house.port()
        with open(base + ".in", "wb", buffering=0) as writer, open(base + ".out", "rb", buffering=0) as reader:
            writer.write(b"in")
            house.until(lambda: port.received == b"in")
            port.write(b"out")
            assert reader.read(10) == b"out"
        house.settle(0.05)
        assert "closed" not in port.events

    def test_one_fifo_for_both(self, house, tmp_path):
        path = str(tmp_path / "p")
        os.mkfifo(path)
        house.open(PipeChardev("p", path))
        port = house.port()
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, b"in")
        os.close(fd)
        house.until(lambda: port.received == b"in")

    def test_half_a_pair_counts_for_nothing(self, house, tmp_path):
        path = str(tmp_path / "p")
        os.mkfifo(path + ".in")
        with pytest.raises(ConfigError) as caught:
            house.open(PipeChardev("p", path))
        assert str(caught.value) == f"Could not open '{path}': No such file or directory"

    def test_nobody_reads(self, house, tmp_path):
        base = str(tmp_path / "p")
        os.mkfifo(base + ".in")
        os.mkfifo(base + ".out")
        house.open(PipeChardev("p", base))
        port = house.port()
        written = 0
        while count := port.write(b"z" * 4096):
            written += count
        assert written == 65536
        fd = os.open(base + ".out", os.O_RDONLY)
        try:
            while "writable" not in port.events:
                os.read(fd, 8192)
                house.loop.run_once(0.02)
            assert port.write(b"z") == 1
        finally:
            os.close(fd)


class TestNull:
    def test_takes_all_gives_nothing_and_is_not_connected(self, house):
        chardev = house.open(NullChardev("n"))
        assert chardev.filename == "null"
        port = house.port()
        assert port.write(b"x" * 1000) == 1000
        port.read_all()
        house.settle(0.05)
        assert (port.events, bytes(port.received), port.end.connected) == ([], b"", False)


class TestRingbuf:
    def test_keeps_the_last_bytes(self, house):
        chardev = house.open(RingbufChardev("r", 16))
        assert chardev.filename == "ringbuf"
        port = house.port()
        assert port.events == ["opened"]
        for piece in (b"0123456789", b"abcdefghij", b"XYZ"):
            assert port.write(piece) == len(piece)
        assert chardev.count == 16
        assert chardev.read(4) == b"789a"
        assert chardev.read(100) == b"bcdefghijXYZ"
        assert chardev.read(100) == b""

    @pytest.mark.parametrize("size", [1, 2, 64])
    def test_behaves_as_a_queue_that_forgets(self, house, size):
        chardev = house.open(RingbufChardev("r", size))
        port = house.port()
        model = b""
        for step in range(300):
            pieces = [bytes([(step * 7 + index) % 256]) * (step * index % 23) for index in range(step % 5)]
            data = memoryview(b"".join(pieces))
            taken = port.end.writev([memoryview(piece) for piece in pieces])
            while taken < len(data):
                taken += port.end.writev([data[taken:]])
            model = (model + data.tobytes())[-size:]
            if step % 3 == 0:
                count = step % 11
                assert chardev.read(count) == model[:count]
                model = model[count:]
            assert chardev.count == len(model)

    def test_monitor_writes_into_it(self, house):
        chardev = house.open(RingbufChardev("r", 8))
        chardev.write(b"0123456789")
        assert chardev.read(100) == b"23456789"
        port = house.port()
        port.read_all()
        assert port.received == b""

    def test_size_must_be_a_power_of_two(self, house):
        with pytest.raises(ConfigError) as caught:
            house.open(RingbufChardev("r", 3000))
        assert str(caught.value) == "size of ringbuf chardev must be power of two"

    def test_memory_that_is_not_there(self, house):
        with pytest.raises(ConfigError, match="cannot make a ringbuf of 9223372036854775808"):
            house.open(RingbufChardev("r", 1 << 63))

    def test_memory_that_runs_out_closes_the_port(self, tmp_path):
        """RLIMIT_FSIZE holds for a memfd as well."""
        program = """
import resource, signal
from virtserial.host_end.factory import open_host_end
from virtserial.chardev.ringbuf import RingbufChardev
from virtserial.errors import BackendError
from virtserial.loop import EventLoop
class Sink:
    def connection_opened(self, chardev, *connection): self.connection = connection
loop, sink = EventLoop(), Sink()
RingbufChardev("r", 1 << 20).open(loop, sink)
end = open_host_end(*sink.connection, loop)
end.start()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try: end.writev([memoryview(b"x" * 500)])
except BackendError as error: print(error, end.ended)
"""
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert done.stdout == "chardev 'r' (ringbuf): cannot write: File too large True\n"

    def test_not_open(self):
        with pytest.raises(StateError, match="chardev 'r' is not open"):
            RingbufChardev("r").read(1)

    def test_two_processes(self, house):
        """A worker in another process writes 4 MiB while this one reads: no byte out of order, none twice."""
        chardev = house.open(RingbufChardev("r", 4096))
        connection, fds = house.connections.pop()
        worker = os.fork()
        if worker == 0:
            try:
                end = open_host_end(connection, fds, house.loop)
                numbers = memoryview(b"".join(number.to_bytes(4, "big") for number in range(1 << 18)))
                sent = 0
                while sent < len(numbers):
                    sent += end.writev([numbers[sent : sent + 1000]])
            finally:
                os._exit(0)
        os.close(fds[0])
        last, done = -1, False
        while not done:
            done = os.waitpid(worker, os.WNOHANG)[0] == worker
            data = chardev.read(4096)
            while len(data) % 4:
                data += chardev.read(4 - len(data) % 4)
            numbers = [int.from_bytes(data[at : at + 4], "big") for at in range(0, len(data), 4)]
            assert numbers == sorted(set(numbers))
            if numbers:
                assert numbers[0] > last
                last = numbers[-1]
        assert last == (1 << 18) - 1

    def test_stopped_worker_does_not_hang_the_monitor(self, house, monkeypatch):
        monkeypatch.setattr("virtserial.chardev.ringbuf.LOCK_PATIENCE_SECONDS", 0.05)
        chardev = house.open(RingbufChardev("r", 4096))
        fd = house.connections[0][1][0]
        holder = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import fcntl, os; fcntl.lockf({fd}, fcntl.LOCK_EX); os.write(1, b'!'); os.read(0, 1)",
            ],
            pass_fds=(fd,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert holder.stdout.read(1) == b"!"
            holder.send_signal(signal.SIGSTOP)
            with pytest.raises(BackendError, match="has held the ring"):
                chardev.read(1)
            port = house.port()
            assert port.write(b"x") == 0
            holder.kill()
            holder.wait()
            house.until(lambda: "writable" in port.events)
            assert port.write(b"x") == 1
        finally:
            holder.kill()
            holder.communicate()

    def test_memory_cannot_be_shrunk_under_the_other_process(self, house):
        house.open(RingbufChardev("r", 4096))
        fd = house.connections[0][1][0]
        assert stat.S_ISREG(os.fstat(fd).st_mode)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, mmap.PAGESIZE)
