"""A boot loader of an Uno (STK500, version 1) behind a pseudo-terminal: what avrdude talks to."""

PAGE = 128


class BootLoader:
    """What `PseudoTerminal` needs of a kit; keeps the flash memory.

    Args:
        signature: of the processor.
        dies_after: pages after whose writing the board says nothing any more; None for never.
        forgets: whether writing changes nothing, so that verifying fails.
    """

    def __init__(self, signature=(0x1E, 0x95, 0x0F), dies_after=None, forgets=False):
        self.memory = bytearray(b"\x55" * 1000 + b"\xff" * (32768 - 1000))
        self.pages = 0
        self.is_open = False
        self._signature, self._dies_after, self._forgets = bytes(signature), dies_after, forgets
        self._input, self._output, self._address = b"", b"", 0

    def open(self, now_us):
        self.is_open, self._input, self._output = True, b"", b""

    def close(self):
        self.is_open = False

    def read(self, now_us):
        output, self._output = self._output, b""
        return output

    def write(self, now_us, data):
        self._input += data
        while (length := self._length()) and len(self._input) >= length:
            command, self._input = self._input[:length], self._input[length:]
            if self._dies_after is not None and self.pages >= self._dies_after:
                return
            self._output += b"\x14" + self._answer(command) + b"\x10"

    def _length(self):
        """Length of the command that has begun, 0 if its head is not there yet."""
        if not self._input:
            return 0
        kind = self._input[0]
        if kind == 0x64:
            return 5 + int.from_bytes(self._input[1:3], "big") if len(self._input) >= 3 else 0
        if kind == 0x45:
            return 2 + self._input[1] if len(self._input) >= 2 else 0
        return {0x41: 3, 0x42: 22, 0x55: 4, 0x56: 6, 0x74: 5}.get(kind, 2)

    def _answer(self, command):
        kind = command[0]
        if kind == 0x41:
            return b"\x02"
        if kind == 0x55:
            self._address = int.from_bytes(command[1:3], "little") * 2
        elif kind == 0x56:
            # Universal commands of SPI: 0x30 reads a byte of the signature.
            return self._signature[command[3] : command[3] + 1] if command[1] == 0x30 else b"\x00"
        elif kind == 0x75:
            return self._signature
        elif kind == 0x74:
            return bytes(self.memory[self._address : self._address + int.from_bytes(command[1:3], "big")])
        elif kind == 0x64:
            data = command[4:-1]
            if not self._forgets:
                self.memory[self._address : self._address + len(data)] = data
            self.pages += 1
        return b""
