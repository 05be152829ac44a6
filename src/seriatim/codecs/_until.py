"""Where a piece of code ends: its line, its block by indentation, its block by braces.

A rule reads a text letter by letter, what came before it first, and says at which letter the piece
is over; `done` is how many of the last letters would then not belong to it. Like a stop string it
depends on the text alone (`_watch`). Code is read just so far that lines and brackets are told from
what strings and comments hold: no grammar is known.
"""

from typing import Protocol

TAB = 8  # columns, as Python counts indentation


class Rule(Protocol):
    """What `Watch` asks letter by letter."""

    text: str
    done: int

    def advance(self, letter: str, /) -> bool:
        """Takes one letter; whether the piece ended, `done` letters ago."""
        ...


class Line:
    """Ends before the newline of the first line that is not blank."""

    text = "line"

    def __init__(self, before: str = "") -> None:
        self.done, self._blank = 0, True

    def advance(self, letter: str, /) -> bool:
        """Takes one letter; whether the line has ended."""
        if letter == "\n" and not self._blank:
            self.done += 1
            return True
        self._blank = self._blank and letter.isspace()
        self.done = int(letter == "\r" and not self._blank)
        return False


class Block:
    """Ends before the newline after which a line has less indentation than the block (Python).

    The block is that of the line that is under way, or what this line opens by the colon at its
    end; where none is under way, that of the first line of the text. Lines within brackets or a
    string, or behind a backslash, have no indentation of their own.
    """

    text = "block"

    def __init__(self, before: str = "") -> None:
        self.done = 0
        self._code, self._columns, self._blank = _Python(), 0, True
        self._indent, self._opens = 0, False  # of the last line; whether one below it is a block's
        for letter in before:
            self._read(letter)
        self._under_way = not self._blank
        self._level = self._indent if self._under_way else None
        self._above = self._indent if self._opens else -1  # of the line that opened the block

    def advance(self, letter: str, /) -> bool:
        """Takes one letter; whether the block has ended."""
        began = self._read(letter)
        self.done = self.done + 1 if began or self._blank else int(letter == "\r")
        if self._under_way and self._blank:
            self._under_way = False
            if self._opens:
                self._level, self._above = None, self._indent
        ends = began and self._is_outside()
        if began and not ends:
            self.done = 0
        return ends

    def _is_outside(self) -> bool:
        """Whether the line that has just begun is; the first one gives the level."""
        if self._level is None:
            self._level = self._indent
            return self._indent <= self._above
        return self._indent < self._level

    def _read(self, letter: str) -> bool:
        """Whether a line that is not blank begins with this letter."""
        began = self._blank and not letter.isspace()
        if began:
            self._blank, self._indent, self._code.last = False, self._columns, ""
        self._columns += TAB - self._columns % TAB if letter == "\t" else 1
        if self._code.ends_line(letter):
            if not self._blank:
                self._opens = self._code.last == ":"
            self._blank, self._columns = True, 0
        return began


class Braces:
    """Ends before the brace that closes the innermost open one (C, Java, JavaScript, Go, ...).

    Blank lines and the indentation before that brace are left out too. Where none is open at first,
    the piece is what the text opens first, and ends behind the brace that closes it.
    """

    text = "braces"

    def __init__(self, before: str = "") -> None:
        self.done, self._code, self._open = 0, _C(), 0
        for letter in before:
            self._open = max(0, self._open + self._code.step(letter))
        self._outer = self._open

    def advance(self, letter: str, /) -> bool:
        """Takes one letter; whether the block has ended."""
        step = self._code.step(letter)
        self._open += step
        left = self._open < self._outer
        if left or (self.done and letter.isspace()):
            self.done += 1
        else:
            self.done = int(letter in "\r\n")
        return left or (step < 0 and self._open == self._outer == 0)


class _Python:
    """Where in Python a text stands: in a string, a comment, brackets or plain code."""

    def __init__(self) -> None:
        self.last = ""  # the last letter of code that is no space
        self._quote = ""  # what ends the string it is in: one quote or three
        self._run = 0  # so many of these quotes stand there in a row
        self._fresh = False  # nothing is in that string yet
        self._pair = ""  # the quote of an empty string just before: a third one begins a long one
        self._depth = 0
        self._comment = self._escaped = False

    def ends_line(self, letter: str) -> bool:
        """Takes one letter; whether it is a newline behind which a line of its own begins."""
        if self._escaped:
            self._escaped = self._fresh = False
            return False
        if letter == "\n" and len(self._quote) < 3:  # a short string ends with its line
            self._quote = self._pair = ""
            self._comment = False
            return not self._depth
        if not self._comment:
            self._escaped = letter == "\\"
            (self._in_string if self._quote else self._in_code)(letter)
        return False

    def _in_string(self, letter: str) -> None:
        self._run = self._run + 1 if letter == self._quote[0] else 0
        if self._run == len(self._quote):
            self._pair = letter if self._fresh else ""
            self._quote, self._run = "", 0
        self._fresh = False

    def _in_code(self, letter: str) -> None:
        pair, self._pair = self._pair, ""
        if letter == "#":
            self._comment = True
            return
        if letter == pair:
            self._quote = 3 * letter
        elif letter in "'\"":
            self._quote, self._fresh = letter, True
        self._depth = max(0, self._depth + (letter in "([{") - (letter in ")]}"))
        self.last = self.last if letter.isspace() else letter


class _C:
    """Where in a language with braces a text stands: in a string, a comment or plain code.

    Strings are in double, single or back quotes; only the last go on beyond a line. Comments stand
    behind // or between /* and */.
    """

    def __init__(self) -> None:
        self._quote = self._comment = self._before = ""
        self._escaped = False

    def step(self, letter: str) -> int:
        """Takes one letter: 1 for a brace that opens, -1 for one that closes, else 0."""
        two, self._before = self._before + letter, letter
        if self._comment:
            if letter == self._comment or two == self._comment:
                self._comment = ""
        elif self._quote:
            self._in_string(letter)
        elif two in ("//", "/*"):
            self._comment, self._before = "\n" if two == "//" else "*/", ""
        elif letter in "'\"`":
            self._quote = letter
        else:
            return (letter == "{") - (letter == "}")
        return 0

    def _in_string(self, letter: str) -> None:
        escaped, self._escaped = self._escaped, letter == "\\" and not self._escaped
        if not escaped and (letter == self._quote or (letter == "\n" and self._quote != "`")):
            self._quote = ""


RULES: dict[str, type[Line] | type[Block] | type[Braces]] = {
    rule.text: rule for rule in (Line, Block, Braces)
}
