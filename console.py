"""How a program here talks to a person: one line for a mistake, a traceback for a bug.

Every command line runs inside `command_line`. A `UserError` says what was given and what was
expected. It ends the program in one line, and so do an OSError and a lack of memory. Any other
exception is a bug and keeps its traceback: this code is there to be edited.
"""

import codecs
import contextlib
import os
import signal
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

LARGEST_FILE = 2**28  # bytes that `read_file` takes
LARGEST_NUMBER = 10**9  # of an option that counts something


class UserError(ValueError):
    """What a user can get wrong: what was given, what was expected."""


def check_range(name: str, value: float, least: float, most: float = LARGEST_NUMBER) -> None:
    """Raises UserError for a number outside of a range, both ends included."""
    if not least <= value <= most:
        raise UserError(f"{name} is {value}, expected {least:,} to {most:,}")


# ------------------------------------------------------------------------------ start and end


def open_streams() -> None:
    """Open the null device for a closed standard stream, and escape what an encoding lacks."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # print(file=None) would write to standard output
            setattr(sys, name, open(os.devnull, mode))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def out_of_memory(error: BaseException) -> bool:
    """Torch has no one exception for all devices: the CPU's is a plain RuntimeError."""
    signs = ("out of memory", "allocate memory", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


@contextlib.contextmanager
def command_line(program: str, memory: str):
    """Run a program: a mistake ends in one line, a closed pipe or an interrupt in none.

    memory: the options that take the most of it, to be named where it does not suffice.
    """
    open_streams()
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # `head`, say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as a shell has it of a program that a closed pipe has ended
    except KeyboardInterrupt:
        sys.exit(130)
    except (UserError, OSError) as error:
        with contextlib.suppress(OSError, ValueError):  # what is printed may be what fails
            sys.stdout.flush()
        sys.exit(f"{program}: {one_line(str(error))}")
    except (MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            sys.exit(f"{program}: not enough memory, try a smaller {memory}")
        raise


@contextlib.contextmanager
def delay_signals() -> Iterator[list[int]]:
    """A list that Ctrl-C, SIGTERM and SIGHUP fill, so that a step is never cut in the middle; a
    second Ctrl-C ends even an evaluation at once."""
    caught: list[int] = []

    def handle(number, frame):
        caught.append(number)
        if caught.count(signal.SIGINT) > 1:  # a closed terminal may send SIGHUP twice
            raise KeyboardInterrupt

    names = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is not everywhere
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup's
            signal.signal(number, handle)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def warn(words: str) -> None:
    """A line for the user that is no result."""
    print(f"{Path(sys.argv[0]).name}: {one_line(words)}", file=sys.stderr, flush=True)


# -------------------------------------------------------------------------------------- files


def read_file(path: str, first: int | None = None) -> bytes:
    """The bytes of a file, or of standard input for '-'; of more than `first`, so many.

    Raises UserError where there is no file, and for more than LARGEST_FILE bytes, of an endless
    device, say; OSError for what cannot be read.
    """
    if path != "-" and (not Path(path).exists() or Path(path).is_dir()):
        found = "is no file" if Path(path).exists() else "is not there"
        raise UserError(f"{path} {found}, expected a file, or - for standard input")
    with contextlib.nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
        content = file.read(LARGEST_FILE + 1 if first is None else first)
    if first is None and len(content) > LARGEST_FILE:
        raise UserError(f"{path} is too long, expected at most {LARGEST_FILE:,} bytes")
    return content


def check_writable(path: str | None) -> None:
    """Raises UserError where no file can be written."""
    if path is None:
        return
    folder = Path(path).parent
    if Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"cannot write {path}, expected a file in a folder that can be written to")


# --------------------------------------------------------------------------------------- text


def printable(text: str | bytes) -> str:
    """Text of which no character moves a cursor, rings a bell or turns the reading direction.

    Control characters are in caret notation, other invisible ones and bytes that are no UTF-8 in
    Python's escapes; newlines and tabs stay.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    for c in set(text) - {"\n", "\t"}:
        if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            caret, escape = f"^{chr(ord(c) ^ 64)}", c.encode("unicode_escape").decode()
            text = text.replace(c, caret if c.isascii() else escape)
    return text


def one_line(text: str | bytes) -> str:
    """Printable, with newlines and tabs in caret notation too."""
    return printable(text).replace("\n", "^J").replace("\t", "^I")


def speaks_unicode() -> bool:
    """Whether standard output has characters beyond ASCII."""
    return "utf" in (sys.stdout.encoding or "").lower()


class ByteWriter:
    """Bytes to standard output, as they come: raw into a pipe, printable to a terminal."""

    def __init__(self):
        self.decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self.terminal = sys.stdout.isatty()

    def write(self, new: bytes) -> None:
        if self.terminal:
            print(printable(self.decoder.decode(new)), end="", flush=True)
        else:
            sys.stdout.buffer.write(new)
            sys.stdout.buffer.flush()

    def end(self) -> None:
        """A newline, on a terminal only: a pipe gets the raw bytes and no more."""
        if self.terminal:
            print(printable(self.decoder.decode(b"", final=True)), flush=True)
