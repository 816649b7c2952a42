"""The fuzzer's bytes, taken as numbers and pieces; behind their end there are zeros."""


class AnyBytes:
    def __init__(self, data):
        self._data = data
        self._at = 0

    def left(self):
        """How many bytes are left."""
        return max(0, len(self._data) - self._at)

    def take(self, count):
        """The next `count` bytes, fewer at the end."""
        piece = self._data[self._at : self._at + count]
        self._at += count
        return piece

    def rest(self):
        """All that is left."""
        return self.take(self.left())

    def _number(self, size):
        return int.from_bytes(self.take(size), "little")

    def u8(self):
        return self._number(1)

    def u16(self):
        return self._number(2)

    def u32(self):
        return self._number(4)

    def u64(self):
        return self._number(8)
