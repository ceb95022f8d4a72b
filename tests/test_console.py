import errno
import io
import os
import signal
import subprocess
import sys
import unicodedata

import pytest

import console
from console import (
    ByteWriter,
    UserError,
    check_range,
    check_writable,
    command_line,
    delay_signals,
    one_line,
    printable,
    read_file,
    warn,
)

# ------------------------------------------------------------------------------ start and end


@pytest.mark.parametrize(
    "error, said",
    [
        (
            UserError("two\nlines, a \x1b[2J, a \u202e and a \udcff"),
            "two^Jlines, a ^[[2J, a \\u202e",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file", "x\ny"), "[Errno 2] No such file: 'x"),
        (MemoryError(), "not enough memory, try a smaller --count"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "not enough memory, try a smaller"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "not enough memory, try a"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "not enough memory"),
    ],
    ids=["user", "system", "memory", "memory of a GPU", "a full GPU", "memory of the CPU"],
)
def test_a_mistake_ends_a_program_in_one_printable_line(error, said):
    with pytest.raises(SystemExit) as ended, command_line("x.py", "--count"):
        raise error
    assert ended.value.code.startswith(f"x.py: {said}")
    assert one_line(ended.value.code) == ended.value.code


@pytest.mark.parametrize(
    "error",
    [
        TypeError("a bug"),
        ValueError("a bug that is no UserError"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("in user code: memory = model.compress(seen)"),
    ],
)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)) as raised, command_line("x.py", "--count"):
        raise error
    assert raised.value is error


def test_a_reader_that_has_seen_enough_ends_a_program_without_a_word(monkeypatch, capfd):
    turned = []  # to the null device, so that nothing complains when Python ends
    monkeypatch.setattr(os, "dup2", lambda new, old: turned.append(old))
    with pytest.raises(SystemExit) as ended, command_line("x.py", ""):
        raise BrokenPipeError
    assert ended.value.code == 141 and turned == [sys.stdout.fileno()]
    with pytest.raises(SystemExit) as ended, command_line("x.py", ""):
        raise KeyboardInterrupt
    assert ended.value.code == 130 and capfd.readouterr() == ("", "")


def shell(redirections: str, code: str, **more) -> subprocess.CompletedProcess:
    """Python code that has console.py and no torch, in a process of its own."""
    code = f"import sys, console\n{code}"
    command = ["sh", "-c", f'"$0" -c "$1" {redirections}', sys.executable, code]
    folder = os.path.dirname(console.__file__)
    return subprocess.run(command, cwd=folder, capture_output=True, env=os.environ | more)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_takes_nothing_with_it(closed):
    code = """
with console.command_line("x.py", ""):
    console.warn("a notice")
    print("a result", len(console.read_file("-")))
    writer = console.ByteWriter()
    writer.write(b"!")
    raise console.UserError("a mistake")"""
    done = shell(closed + (" </dev/null" if "<&-" not in closed else ""), code)
    assert done.returncode == 1
    assert done.stdout == (b"" if " >&-" in f" {closed}" else b"a result 0\n!")
    assert done.stderr == (b"" if "2>&-" in closed else b"-c: a notice\nx.py: a mistake\n")


def test_what_an_encoding_lacks_is_escaped():
    code = """
with console.command_line("x.py", ""):
    console.warn("\\u2192 \\udcff \\xe9")
    print("\\u2192 \\udcff \\xe9")"""
    done = shell("", code, PYTHONIOENCODING="cp1252")
    assert (done.returncode, done.stdout) == (0, b"\\u2192 \\udcff \xe9\n")
    assert done.stderr == b"-c: \\u2192 \\udcff \xe9\n"


def test_a_notice_is_one_line_on_standard_error(capsys):
    warn("a\nb\x1b")
    said = capsys.readouterr()
    assert said.out == "" and said.err.endswith(": a^Jb^[\n") and said.err.count("\n") == 1


def test_a_range_holds_both_its_ends_and_nothing_beyond():
    for inside in (1, 2.5, 9):
        check_range("--x", inside, 1, 9)
    for outside in (0, 9.5, -1, float("nan"), float("inf"), 10**18):
        with pytest.raises(UserError, match=f"--x is {outside}, expected 1 to 9"):
            check_range("--x", outside, 1, 9)
    check_range("--x", 10**9, 0)
    with pytest.raises(UserError, match="--x is 1000000001, expected 0 to 1,000,000,000"):
        check_range("--x", 10**9 + 1, 0)


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture
def handlers():
    """Signals are not ignored, even if the tests run in the background or under nohup."""
    before = [signal.signal(number, signal.default_int_handler) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def test_signals_are_kept_for_later_and_a_second_ctrl_c_interrupts_at_once(handlers):
    reached = []
    with pytest.raises(KeyboardInterrupt), delay_signals() as caught:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)  # a closed terminal sends two SIGHUP
            reached.append(len(caught))
        signal.raise_signal(signal.SIGINT)
        reached.append("too far")
    assert reached == [1, 2, 3, 4]
    assert {signal.getsignal(number) for number in SIGNALS} == {signal.default_int_handler}


def test_a_hangup_that_nohup_ignores_stays_ignored(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with delay_signals() as caught:
        signal.raise_signal(signal.SIGHUP)
    assert caught == [] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


# -------------------------------------------------------------------------------------- files


def test_a_file_is_read_whole_or_so_far_as_wanted(tmp_path, monkeypatch):
    content = os.urandom(2**20 + 7)
    (tmp_path / "file").write_bytes(content)
    path = str(tmp_path / "file")
    assert read_file(path) == read_file(path, first=2**30) == content
    for first in (0, 1, 2**20, 2**20 + 1):
        assert read_file(path, first=first) == content[:first]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert read_file("-") == content and not sys.stdin.buffer.closed


def test_an_endless_device_is_refused_unless_its_beginning_is_wanted(monkeypatch):
    monkeypatch.setattr(console, "LARGEST_FILE", 5000)
    with pytest.raises(UserError, match="/dev/zero is too long, expected at most 5,000 bytes"):
        read_file("/dev/zero")
    assert read_file("/dev/zero", first=2**20 + 9) == bytes(2**20 + 9)  # the caller's own limit


@pytest.mark.parametrize("extra", [0, 1])
def test_the_largest_file_is_read_and_one_byte_more_is_refused(tmp_path, monkeypatch, extra):
    monkeypatch.setattr(console, "LARGEST_FILE", 2**20)
    path = tmp_path / "file"
    path.write_bytes(bytes(2**20 + extra))
    if extra:
        with pytest.raises(UserError, match="is too long"):
            read_file(str(path))
    else:
        assert len(read_file(str(path))) == 2**20


class Source(io.RawIOBase):
    """An endless standard input that counts what is taken of it."""

    taken = 0

    def readinto(self, buffer):
        self.taken += len(buffer)
        return len(buffer)

    def readable(self):
        return True


@pytest.mark.parametrize("first, limit", [(10, 10), (None, 5000)])
def test_no_more_is_taken_of_an_endless_input_than_a_piece(monkeypatch, first, limit):
    monkeypatch.setattr(console, "LARGEST_FILE", 5000)
    source = Source()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(source)))
    try:
        assert len(read_file("-", first)) == limit
    except UserError:
        assert first is None
    assert source.taken <= limit + 2**20


def test_what_cannot_be_read_is_a_mistake_of_the_user(tmp_path):
    for path, said in ((tmp_path / "nowhere", "is not there"), (tmp_path, "is no file")):
        with pytest.raises(UserError, match=f"{path.name} {said}, expected a file, or - for"):
            read_file(str(path))
    with pytest.raises(OSError):
        read_file("x" * 5000)


def test_a_file_too_large_for_the_memory_ends_in_one_line(monkeypatch):
    class Large:
        def read(self, size):
            raise MemoryError

    monkeypatch.setattr(sys, "stdin", type("Stream", (), {"buffer": Large()}))
    with pytest.raises(SystemExit, match="^x.py: not enough memory, try a smaller --limit$"):
        with command_line("x.py", "--limit"):
            read_file("-")


def test_only_a_file_in_a_folder_that_is_there_can_be_written(tmp_path, monkeypatch):
    check_writable(None)
    check_writable(str(tmp_path / "new"))
    monkeypatch.chdir(tmp_path)
    check_writable("new")
    for path in (tmp_path, tmp_path / "no/where"):
        with pytest.raises(UserError, match=f"cannot write {path}, expected a file in a folder"):
            check_writable(str(path))
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(UserError, match="cannot write new"):
        check_writable("new")


# --------------------------------------------------------------------------------------- text


def test_no_invisible_character_is_printed_but_newline_and_tab():
    some = [chr(c) for c in (*range(0x3000), *range(0xD700, 0xE100), *range(0xFE00, 0x11000))]
    some += map(chr, range(0xE0000, 0xE0080))  # tags
    hidden = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    for c in some:
        if unicodedata.category(c) not in hidden or c in "\n\t":
            assert printable(c) == c
        else:
            shown = printable(c)
            assert shown.isascii() and shown.isprintable() and len(shown) > 1
    shown = printable("".join(some))
    assert not {unicodedata.category(c) for c in set(shown) - set("\n\t")} & hidden


@pytest.mark.parametrize(
    "text, shown",
    [
        ("\u202eabc\u2066d\u200be\udcff", r"\u202eabc\u2066d\u200be\udcff"),
        ("\x1b[2J\x07\x7f\x00 \x9b\u2028", r"^[[2J^G^?^@ \x9b\u2028"),
        (b"caf\xc3\xa9 \xff \xe2\x82", r"café \xff \xe2\x82"),  # the end of a chunk
        (b"\x82\xac uro", r"\x82\xac uro"),  # and the beginning of the next
        ("\u202e".encode(), r"\u202e"),
        ("a\tb\nc €", "a\tb\nc €"),
    ],
)
def test_printable_text_is_escaped_where_it_must_be_and_nowhere_else(text, shown):
    assert printable(text) == shown
    assert one_line(text) == shown.replace("\n", "^J").replace("\t", "^I")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_whole_letters_and_no_control_character(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    writer, written = ByteWriter(), []
    for byte in b"a\x1b[2J\x07\tb\n" + "é\u202e\u200b\x9b".encode() + b"\xff\xe2\x82":
        writer.write(bytes([byte]))
        written.append(terminal.getvalue())
    assert "a^[[2J^G\tb\n" in written  # as they come
    writer.end()
    assert terminal.getvalue() == "a^[[2J^G\tb\né\\u202e\\u200b\\x9b\\xff\\xe2\\x82\n"


def test_a_pipe_gets_every_byte_at_once_and_no_more(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", out)
    writer = ByteWriter()
    for byte in range(256):
        writer.write(bytes([byte]))
        assert out.buffer.getvalue() == bytes(range(byte + 1))
    writer.end()
    out.flush()
    assert out.buffer.getvalue() == bytes(range(256))
