"""Records a command in a terminal, and draws recordings as animated SVG: the picture in README.md.

    python3 docs/picture.py record docs/demo.cast ./scripts/demo    # in a terminal of 80 x 28, as asciicast v2
    python3 docs/picture.py draw docs/demo.cast docs/demo.svg

The drawing is a film strip: one screen below the other, and an animation that shows each for its time.  Lines that
several screens share are in it once.  Without animations (or where the reader wants none) it shows the last screen.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from virtserial.guest.recording import OUTPUT, Recorder, Recording

ROWS, COLUMNS = 28, 80
CELL_WIDTH, CELL_HEIGHT, MARGIN = 8.4, 18, 14
SHORTEST = 0.12
"""Seconds that a screen stays at least: what changes faster is left out."""
LONGEST = 1.0
"""Seconds after which a pause goes on at once."""
LAST_STAYS = 8.0
COLOURS = {"": "#d8dee9", "1": "#ffffff", "2": "#7b8699", "32": "#8fce7a", "36": "#6cc7d9"}
BACKGROUND = "#1f2430"
CODES = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")

Line = list[tuple[str, str]]
"""A line's characters, each with the parameter of its SGR sequence."""


class Screen:
    """The terminal that a recording was made for, as far as the demonstration uses one (ECMA-48: CUU, ED, EL, SGR)."""

    def __init__(self) -> None:
        self.lines: list[Line] = [[]]
        self.row = self.column = 0
        self.style = ""

    def feed(self, text: str) -> None:
        """Show what a program has written."""
        for parameter, function, control, plain in CODES.findall(text):
            if plain:
                self._write(plain)
            elif control == "\r":
                self.column = 0
            elif control == "\n":
                self._next_line()
            elif function == "A":
                self.row = max(0, self.row - int(parameter or 1))
            elif function in "JK":
                del self.lines[self.row][self.column :]
                if function == "J":
                    del self.lines[self.row + 1 :]
            elif function == "m":
                self.style = "" if parameter in ("", "0") else parameter

    def visible(self) -> list[tuple[tuple[str, str], ...]]:
        """The last lines that fit."""
        return [tuple(line) for line in self.lines[-ROWS:]]

    def _write(self, text: str) -> None:
        for character in text:
            if self.column == COLUMNS:
                self.column = 0
                self._next_line()
            line = self.lines[self.row]
            line.extend((" ", "") for _ in range(self.column - len(line)))
            line[self.column : self.column + 1] = [(character, self.style)]
            self.column += 1

    def _next_line(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append([])


def record(path: str, command: list[str]) -> int:
    """Run a command in a terminal and record what it shows, after the line that starts it; its exit status."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    recorder = Recorder(path, " ".join(command), (ROWS, COLUMNS))
    recorder.record(OUTPUT, f"$ {' '.join(command)}\r\n".encode())
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm-256color"}
    )
    os.close(theirs)
    try:
        while data := os.read(ours, 65536):
            recorder.record(OUTPUT, data)
    except OSError:  # EIO: the other side is closed
        pass
    recorder.close()
    return process.wait()


def screens(recording: Recording) -> list[tuple[float, list[tuple[tuple[str, str], ...]]]]:
    """Every screen that stays for SHORTEST, with the second at which it comes."""
    screen, shown, skipped, last = Screen(), [], 0.0, 0.0
    for event in recording:
        skipped += max(0.0, event.at - last - LONGEST)
        last = event.at
        if event.kind == OUTPUT:
            screen.feed(event.data.decode())
            at, now = last - skipped, screen.visible()
            if shown and at - shown[-1][0] < SHORTEST:
                shown[-1] = (shown[-1][0], now)
            elif not shown or now != shown[-1][1]:
                shown.append((at, now))
    return shown


def draw_line(line: tuple[tuple[str, str], ...]) -> str:
    """A line as <text>: a piece for each style, of a fixed length, so that no font moves the columns."""
    pieces, start = [], 0
    while start < len(line):
        style, end = line[start][1], start
        while end < len(line) and line[end][1] == style:
            end += 1
        text = "".join(character for character, _ in line[start:end])
        if text.strip():
            place = f'x="{start * CELL_WIDTH:.1f}" textLength="{(end - start) * CELL_WIDTH:.1f}"'
            pieces.append(f'<tspan {place} fill="{COLOURS.get(style, COLOURS[""])}">{escape(text)}</tspan>')
        start = end
    return "".join(pieces)


def draw(recording: Recording) -> str:
    """The recording as SVG."""
    film = screens(recording)
    seconds = film[-1][0] + LAST_STAYS
    width = round(COLUMNS * CELL_WIDTH) + 2 * MARGIN
    height = max(len(lines) for _, lines in film) * CELL_HEIGHT + 2 * MARGIN
    known: dict[str, str] = {}
    strip, steps = [], []
    for number, (at, lines) in enumerate(film):
        steps.append(f"{100 * at / seconds:.2f}%{{transform:translateY(-{number * height}px)}}")
        for row, line in enumerate(lines):
            if drawn := draw_line(line):
                name = known.setdefault(drawn, f"l{len(known)}")
                strip.append(f'<use href="#{name}" y="{number * height + row * CELL_HEIGHT}"/>')
    texts = "".join(f'<text id="{name}" y="13" xml:space="preserve">{drawn}</text>\n' for drawn, name in known.items())
    title = escape(recording.title, {'"': "&quot;"})
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"
role="img" aria-label="A terminal: {title}">
<style>
text{{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}}
#film{{transform:translateY(-{(len(film) - 1) * height}px);animation:film {seconds:.1f}s step-end infinite}}
@keyframes film{{{"".join(steps)}}}
@media (prefers-reduced-motion:reduce){{#film{{animation:none}}}}
</style>
<defs>
{texts}</defs>
<rect width="{width}" height="{height}" rx="8" fill="{BACKGROUND}"/>
<svg x="{MARGIN}" y="{MARGIN}" width="{width - 2 * MARGIN}" height="{height - 2 * MARGIN}">
<g id="film">
{chr(10).join(strip)}
</g>
</svg>
</svg>
"""


def main(words: list[str]) -> int:
    """Record or draw; the exit status."""
    if len(words) >= 3 and words[0] == "record":
        return record(words[1], words[2:])
    if len(words) == 3 and words[0] == "draw":
        recording = Recording(words[1])
        Path(words[2]).write_text(draw(recording))
        recording.close()
        return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
