import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import info, make_model, piped

import console
import data
import evaluate
import generate as g
import questions
from cache import Session
from common import WEIGHTS, load_checkpoint, save_checkpoint
from console import printable
from generate import generate, sample, write
from render import half_blocks, render
from vist2 import READ, START

n = 16

# ------------------------------------------------------------------------------------ sampling


def test_temperature_divides_the_logits_and_top_k_keeps_the_likeliest():
    logits, draws = torch.randn(1, 256).mul(2), 2000
    rng = torch.Generator().manual_seed(0)
    for temperature, top_k in ((1.0, None), (2.0, None), (0.5, 300), (1.0, 3)):
        likely = (logits[0] / temperature).softmax(-1)
        if top_k:
            likely = likely * (logits[0] >= logits[0].topk(min(top_k, 256)).values[-1])
        drawn = sample(logits.expand(draws, -1), temperature, top_k, rng)
        share = drawn.bincount(minlength=256) / draws
        assert (share - likely / likely.sum()).abs().max() < 0.03
        assert top_k != 3 or (share > 0).sum() == 3
    for temperature, top_k in ((0, None), (1.5, 1), (1e-300, None)):
        assert sample(logits, temperature, top_k, rng) == logits.argmax()


def test_sampling_is_by_seed_and_stops_at_the_stop_byte(model):
    draw = lambda seed, **more: generate(model, b"x", 30, temperature=1.5, seed=seed, **more)
    drawn = draw(1)
    assert drawn == draw(1) != draw(2) and len(drawn) == 30
    assert draw(1, stop=drawn[10]) == drawn[: drawn.index(drawn[10])]


def test_a_batch_equals_separate_runs(model):
    prompts = [b"first " * 6, b"second" * 6, b"first " * 6]
    session = Session(model, 3)
    logits = session.prefill(torch.cat([g.as_row(prompt) for prompt in prompts]))
    rows = torch.stack(list(write(session, logits, 40)), 1)
    for row, prompt in zip(rows.tolist(), prompts, strict=True):
        assert bytes(row) == generate(model, prompt, 40)
    drawn = torch.stack(list(write(session, logits, 40, temperature=1.2)), 1)
    assert not torch.equal(drawn[0], drawn[2])  # each row by itself


def test_a_longer_prompt_is_cut_from_the_left_by_whole_chunks(model):
    prompt = bytes(range(100))
    assert g.end_of_prompt(prompt, 4, n) == prompt[3 * n :]
    assert g.end_of_prompt(prompt[:63], 4, n) == prompt[:63]
    assert g.end_of_prompt(prompt[:64], 4, n) == prompt[n:64]
    assert generate(model, prompt, 9) == generate(model, prompt[3 * n :], 9)  # a training window
    assert generate(model, prompt, 9, history_chunks=7) != generate(model, prompt, 9)


def test_an_answer_is_what_is_written_after_the_question_up_to_stop(model, monkeypatch):
    context, question = bytes(range(32, 72)), b"what?"
    monkeypatch.setattr(g, "STOP", 256)  # no byte: what is written ends at its length
    written = generate(model, context + b"\x05what?\x06", 20, history_chunks=8)
    assert g.answer(model, context, question, 20) == (written, False)
    monkeypatch.setattr(g, "STOP", written[7])
    before = written.index(written[7])
    assert g.answer(model, context, question, 20) == (written[:before], True)
    assert g.answer(model, context, question, before) == (written[:before], True)  # just in time
    for texts in ((b"a\x04", b"q"), (b"", b"\x05")):
        with pytest.raises(ValueError, match="which marks a role"):
            g.answer(model, *texts, 20)


def test_reading_back_is_free_running_and_equals_the_uncached_forward(model, monkeypatch):
    monkeypatch.setattr(g, "GROUP", 2)
    text = bytes(torch.randint(256, (3 * n + 5,)).tolist())
    shown = torch.tensor(list(text[: 3 * n])).view(3, 1, n)
    read = torch.zeros_like(shown)
    for k in range(n):
        logits = model(torch.cat([shown, read], 1), torch.tensor([[START, READ]] * 3))
        read[:, 0, k] = logits[:, 1, k].argmax(-1)
    assert g.read_back(model, text) == bytes(read.flatten().tolist())
    assert [len(group) for group in g.read_groups(model, text)] == [2 * n, n]
    assert g.read_back(model, b"") == g.read_back(model, b"abc") == b""


# --------------------------------------------------------------------------- the weights


def test_the_weights_that_come_with_the_code_read_and_recall():
    model, _ = load_checkpoint(WEIGHTS)
    noise, text = bytes(torch.randint(256, (2048,)).tolist()), Path(__file__).read_bytes()[:2048]
    read = g.read_back(model, noise + text)
    for shown, found in ((noise, read[:2048]), (text, read[2048:])):
        assert sum(a == b for a, b in zip(shown, found, strict=True)) / 2048 > 0.97
    rng = data.generator("weights")
    examples = [questions.recall_example(None, rng, 64, 8, 1 + i % 8) for i in range(32)]
    assert evaluate.exact_match(model, examples, "sketch") > 0.9


def test_a_fresh_clone_answers_with_them_until_a_model_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "facts").write_text("al=0000\nbe=1eef\nga=3dde\n" * 3)
    ask = ["--ask", "be", "--context", "facts", "--device", "cpu", "--max-new-bytes", "9"]
    g.main(ask)
    said = capsys.readouterr()
    assert said.out == "1eef\n" and said.err.endswith("weights/tiny.pt answers\n")
    Path(g.CHECKPOINT).parent.mkdir(parents=True)
    save_checkpoint(g.CHECKPOINT, make_model(), info(max_context=99))
    for arguments in (ask, ["--prompt", "x", "--max-new-bytes", "1"]):
        piped(monkeypatch, arguments)
        said = capsys.readouterr().err.splitlines()
        assert said[0].endswith(f"{g.CHECKPOINT} answers")


# ------------------------------------------------------------------------- command line


CONTEXT, PROMPT = b"first line\nsecond line\nthird\n", bytes(range(64, 164))
ASK = ["--ask", "what?", "--context", "context"]
OPTIONS = ["--temperature 0", "--top-k 2", "--seed 7", "--max-new-bytes 30", "--bf16"]
OPTIONS += [f"--history {name}" for name in ("full", "prompt", "none")]


@pytest.fixture
def run(model, tmp_path, monkeypatch) -> list[str]:
    """The arguments of every run, in a folder with a model, a context and one byte."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint("model.pt", model, info(max_context=63))
    Path("context").write_bytes(CONTEXT)
    Path("tiny").write_bytes(b"x")
    return ["--checkpoint", "model.pt", "--device", "cpu"]


@pytest.mark.parametrize("asks", [False, True], ids=["write", "ask"])
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_what_is_written(run, model, monkeypatch, option, asks):
    count = 150 if option == "--bf16" else 50  # which seldom changes a byte

    def expected(**how):
        how = dict(max_new_bytes=count, temperature=0.3) | how
        if asks:
            return (printable(g.answer(model, CONTEXT, b"what?", **how)[0]) + "\n").encode()
        return generate(model, PROMPT, **how)

    monkeypatch.setattr(g, "STOP", 256)  # no byte: no answer ends before its length
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PROMPT)))
    arguments = [*run, *(ASK * asks), "--max-new-bytes", str(count), "--temperature", "0.3"]
    written, plain = piped(monkeypatch, arguments + option.split()), expected()
    name, _, value = option.removeprefix("--").replace("-", "_").partition(" ")
    if name == "bf16":
        model.to(torch.bfloat16)
    how = {name: int(value) if value.isdecimal() else value} if value else {}
    assert written == expected(**how) != plain


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_pipe_gets_raw_bytes_and_a_terminal_printable_ones(run, model, monkeypatch, capsys):
    arguments = [*run, "--prompt=-\u00e9 \udcff", "--max-new-bytes", "50", "--seed", "3"]
    expected = generate(model, "-é ".encode() + b"\xff", 50, temperature=0.8, seed=3)
    assert piped(monkeypatch, arguments) == expected
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Terminal())
        g.main(arguments)
        assert sys.stdout.getvalue() == printable(expected) + "\n"
    assert capsys.readouterr().err.count("\n") == 2  # which checkpoint answers, twice
    with pytest.raises(SystemExit):
        g.main(["--help"])
    assert "--prompt=-x where it begins with -" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("prompt", [b"", PROMPT, b"\xe2\x82"], ids=["none", "long", "half"])
def test_a_prompt_is_a_file_a_fifo_or_standard_input(run, model, monkeypatch, capsys, prompt):
    Path("file").write_bytes(prompt)
    os.mkfifo("fifo")
    threading.Thread(target=Path("fifo").write_bytes, args=(prompt,), daemon=True).start()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(prompt)))
    expected = generate(model, prompt, 9, temperature=0.8)
    cut = "the prompt is 100 bytes, the history 4 chunks of 16: the first 48 bytes are cut"
    for source in (["--prompt-file", "file"], ["--prompt-file", "fifo"], []):
        assert piped(monkeypatch, [*run, "--max-new-bytes", "9", *source]) == expected
        assert (cut in capsys.readouterr().err) == (prompt == PROMPT)


@pytest.mark.parametrize("chunks", [4, 5])
def test_a_checkpoint_says_what_it_was_trained_for(run, model, monkeypatch, capsys, chunks):
    save_checkpoint("model.pt", model, info(history="full"))
    how = ["--history-chunks", str(chunks), "--prompt", "p" * 40, "--max-new-bytes", "30"]
    expected = dict(temperature=0.8, history="full", history_chunks=chunks)
    assert piped(monkeypatch, run + how) == generate(model, b"p" * 40, 30, **expected)
    longer = "--history-chunks 5 is more than the 4 that training saw"
    said = capsys.readouterr().err
    assert (longer in said) == (chunks == 5) and "but training was under" not in said
    piped(monkeypatch, [*run, *how, "--history", "none"])
    assert "--history none, but training was under full" in capsys.readouterr().err
    g.main([*run, "--read", "context"])
    assert "trained under history 'full', it never learned to read" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="model.pt never learned to answer, .*checkpoint .*tiny"):
        g.main(run + ASK)


def test_what_is_not_said_comes_from_training_and_from_what_is_asked_for(run, model, monkeypatch):
    save_checkpoint("model.pt", model, info(max_window=6 * n))
    written = piped(monkeypatch, [*run, "--prompt", "p" * 90, "--max-new-bytes", "30"])
    assert written == generate(model, b"p" * 90, 30, temperature=0.8, history_chunks=6)
    assert written != generate(model, b"p" * 90, 30, temperature=0.8)  # 4 chunks
    for arguments, expected in (([], (512, 0.8)), (ASK, (128, 0))):
        g.resolve(args := g.parse(arguments))
        assert (args.max_new_bytes, args.temperature) == expected


def test_stats_count_the_cache(run, capsys, monkeypatch):
    arguments = [*run, "--prompt", "x" * 30, "--max-new-bytes", "9", "--stats"]
    piped(monkeypatch, arguments)
    said = capsys.readouterr().err  # 2 chunks of 4 tokens, START, 6 bytes
    assert "15 entries, 8 KiB, for 38 bytes; as full text 39 entries, 20 KiB" in said
    piped(monkeypatch, [*arguments, "--bf16"])
    assert "15 entries, 4 KiB" in capsys.readouterr().err
    assert piped(monkeypatch, [*arguments, "--max-new-bytes", "0"]) == b""


@pytest.mark.parametrize("columns, beside, lines", [(20, 1, 1), (128, 1, 4), (129, 2, 4)])
def test_watch_shows_each_chunk_turn_into_its_sketch(
    run, model, capsys, monkeypatch, columns, beside, lines
):
    monkeypatch.setenv("COLUMNS", str(columns))
    command = [*run, "--prompt", "p" * 30, "--max-new-bytes", "38"]
    text = b"p" * 30 + piped(monkeypatch, command)
    assert b"p" * 30 + piped(monkeypatch, [*command, "--watch"]) == text  # a pipe gets no picture
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    g.main([*command, "--watch"])
    said = capsys.readouterr().out
    for chunk, entries, held in ((2, 9, 32), (3, 13, 48), (4, 9, 32)):  # 4 chunks roll over
        end = n * chunk
        newest = torch.tensor(list(text[:end])).view(-1, n)[-beside:]
        row = torch.cat([*F.pad(render(newest, (16, 4)), (0, 1))], dim=1)[:, :-1]
        picture = half_blocks(row, columns)
        assert len(picture.split("\n")) == lines and max(map(len, picture.split("\n"))) <= columns
        now = f"the cache holds {entries} entries; as full text {held + 1}\n"
        assert f"\n{picture}\n{n} bytes became 4 visual tokens: {now}" in said
    assert said.count("visual tokens") == 3 and said.endswith(f"{printable(text[64:])}\n")
    g.main([*run, "--watch", "--prompt", "p" * 32, "--max-new-bytes", "17"])
    assert capsys.readouterr().out.count("visual tokens") == 1  # none of the prompt alone


def test_read_prints_each_chunk_above_what_is_read_from_it(run, model, capsys):
    text = bytes(torch.randint(32, 127, (40 * n,)).tolist()) + b"rest"
    Path("text").write_bytes(text)
    read = g.read_back(model, text), g.read_back(model.to(torch.bfloat16), text)
    assert read[0] != read[1]
    for option, found in zip(([], ["--bf16"]), read, strict=True):
        g.main([*run, "--read", "text", *option])
        said = capsys.readouterr()
        lines = said.out.splitlines()
        for name, first, shown in (("text", 0, text), ("read", 1, found)):
            parts = [console.one_line(shown[i : i + n]) for i in range(0, 40 * n, n)]
            assert lines[first:80:2] == [f"{name} |{part}|" for part in parts]
        right = sum(a == b for a, b in zip(text, found, strict=False))
        last = f"{right} of 640 bytes right: {right / 640:.4f}, free-running (4 bytes at the end"
        assert len(lines) == 86 and lines[-1].startswith(last)
        assert said.err.endswith("model.pt answers\n")


def test_read_shows_misreads_inside_a_letter_and_no_invisible_character(model, monkeypatch, capsys):
    text = "a tab\t, a cut lé".encode() + "tter \u202e\n\u2066...rest".encode()
    read = text[:16].replace(b"\xc3", b"\xc4") + text[16:32].replace(b".", b"\x80")
    monkeypatch.setattr(g, "read_groups", lambda model, text: iter([read[:16], read[16:]]))
    g.print_reading(model, text)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        r"text |a tab^I, a cut l\xc3|",
        r"read |a tab^I, a cut l\xc4|",
        r"text |\xa9tter \u202e^J\u2066...|",
        r"read |\xa9tter \u202e^J\u2066\x80\x80\x80|",
    ]
    assert lines[4:6] == [r"b'.' read as b'\x80', times: 3", r"b'\xc3' read as b'\xc4', times: 1"]
    assert lines[6].startswith("28 of 32 bytes right: 0.8750") and "4 bytes at the end" in lines[6]


def test_ask_reads_no_more_than_training_saw(run, model, capsys):
    cut = "the context is 95 bytes, training saw at most 63: the first 32 bytes are cut"
    for context, read in (
        (bytes(range(32, 127)), bytes(range(64, 127))),
        (CONTEXT, CONTEXT),
        (b"x", b"x"),
    ):
        Path("context").write_bytes(context)
        g.main([*run, *ASK, "--max-new-bytes", "20"])
        said, (expected, ended) = capsys.readouterr(), g.answer(model, read, b"what?", 20)
        assert said.out == printable(expected) + "\n"  # the likeliest, unless told otherwise
        assert (cut in said.err) == (len(context) == 95)
        assert ("cut at --max-new-bytes 20, the answer had not" in said.err) == (not ended)


def test_questions_come_a_line_each_from_standard_input(run, model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"what?\n\nwho?\r\nlast")))
    said = piped(monkeypatch, [*run, "--ask", "-", "--context", "context", "--max-new-bytes", "9"])
    answers = [g.answer(model, CONTEXT, q, 9)[0] for q in (b"what?", b"", b"who?", b"last")]
    assert said.decode() == "".join(printable(a) + "\n" for a in answers)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"what?")))
    monkeypatch.setattr(g, "answer", lambda *_, **how: (b"two\nlines", True))
    assert piped(monkeypatch, [*run, "--ask", "-", "--context", "context"]) == b"two^Jlines\n"


def test_a_role_is_named_by_its_offset_in_the_file(run):
    Path("context").write_bytes(b"\x04" + b"x" * 79 + b"\x05" + b"y" * 19)
    with pytest.raises(SystemExit, match="byte 80 of context is 0x05, which marks a role"):
        g.main(run + ASK)  # the first is cut


HUGE = 10**18
BAD = {
    "--device tpu": "device 'tpu' is not there",
    "--max-new-bytes -1": "--max-new-bytes is -1",
    f"--max-new-bytes {HUGE}": f"--max-new-bytes is {HUGE}, expected 0 to 1,000,000,000",
    "--top-k 0": "--top-k is 0",
    f"--seed {2**63}": f"--seed is {2**63}, expected 0 to",
    "--history-chunks 1": "--history-chunks is 1, expected 2 to",
    f"--history-chunks {HUGE}": f"--history-chunks is {HUGE}",
    "--ask who?": "--ask QUESTION and --context FILE",
    "--context tiny": "--ask QUESTION and --context FILE",
    "--ask - --context -": "both read standard input, expected one of them",
    "--ask who? --context /dev/zero": "/dev/zero is too long",
    "--ask who? --context tiny --stats": "are for continuing a text",
    "--read tiny --watch": "are for continuing a text",
    "--history full --watch": "--watch is for --history sketch, this is full",
    "--ask who? --context tiny --max-new-bytes -1": "--max-new-bytes is -1",
    f"--ask who? --context tiny --max-new-bytes {HUGE}": f"--max-new-bytes is {HUGE}",
    "--read tiny --history full": "--top-k are not for --read",
    "--read tiny --max-new-bytes 9": "--top-k are not for --read",
    "--read tiny --temperature 0": "--top-k are not for --read",
    "--read tiny --top-k 2": "--top-k are not for --read",
    "--read tiny": "tiny has 1 bytes, expected at least one chunk, 16",
    "--ask xi --context /dev/null": "/dev/null is empty, expected a text",
    "--read /dev/zero": "/dev/zero is too long, expected at most 5,000 bytes",
    "--prompt-file /dev/zero": "/dev/zero is too long",
    "--prompt-file=": " is no file, expected a file, or -",
    "--checkpoint=": " is no file, expected a checkpoint",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_gets_one_clear_line(run, monkeypatch, arguments):
    monkeypatch.setattr(console, "LARGEST_FILE", 5000)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x")))
    with pytest.raises(SystemExit) as stopped:
        g.main(run + arguments.split())
    assert BAD[arguments] in stopped.value.code and "\n" not in stopped.value.code


def test_no_closed_stream_encoding_or_path_costs_a_result(run, monkeypatch, capsys):
    os.rename("model.pt", "\udcfe.pt")
    Path("\udcff").write_text("sixteen → bytes." * 2, encoding="utf-8")
    run = [*run, "--checkpoint", "\udcfe.pt"]
    shell = ["sh", "-c", '"$0" "$@" <&- 2>&-', sys.executable, g.__file__, *run, "--read", "\udcff"]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(shell, capture_output=True, env=environment)
    first, *_, last = done.stdout.splitlines()
    assert (done.returncode, done.stderr, first) == (0, b"", rb"text |sixteen \u2192 byte|")
    assert b" of 32 bytes right: " in last
    with monkeypatch.context() as patch:  # what Python makes of >&- and <&-
        patch.setattr(sys, "stdout", None)
        patch.setattr(sys, "stdin", None)
        g.main([*run, "--max-new-bytes", "9"])
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1) and said.err.endswith("\\udcfe.pt answers\n")
