import contextlib
import io
import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_model, piped

import data
import generate as g
from generate import Session, exit_if_out_of_memory, generate, write
from train import exact_match
from vist2 import HISTORIES, READ, load_checkpoint, read_checkpoint, save_checkpoint

n, m = 16, 4


def entries(history: str, prompt: int, t: int) -> int:
    """The design's formula."""
    if history == "none":
        return 1 + t % n
    if history == "sketch":
        return t // n * m + 1 + t % n
    kept = prompt // n if history == "prompt" else 0
    return kept * m + 1 + t - kept * n


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("prompt", [0, 1, n - 1, n, n + 1, 3 * n + 5])
def test_cached_equals_uncached_and_holds_not_an_entry_more(model, monkeypatch, history, prompt):
    monkeypatch.setattr(g, "GROUP", 2)  # so that three chunks are encoded in two groups
    text = torch.randint(256, (2, 7, n))
    line = text.flatten(1)
    uncached = model(text, history=history, prompt_chunks=prompt // n).flatten(1, 2)
    session = Session(model, 2, history, capacity=8 * n)
    logits = session.prefill(line[:, :prompt])
    for t in range(prompt, 7 * n):
        torch.testing.assert_close(logits, uncached[:, t], atol=1e-4, rtol=1e-4)
        assert session.cache_entries == entries(history, prompt, t)
        entry = 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, head width, bytes of a float
        assert session.cache_bytes == 2 * session.cache_entries * entry
        logits = session.step(line[:, t])


def test_a_session_in_bf16_stays_close_to_float32(model):
    text = torch.randint(256, (1, 4 * n))
    exact, rough = [], []
    for found, dtype in ((exact, torch.float32), (rough, torch.bfloat16)):
        session = Session(model.to(dtype), 1)
        found.append(session.prefill(text[:, : 2 * n]).float())
        found += [session.step(byte).float() for byte in text[:, 2 * n : 4 * n - 1].T]
        assert session.cache.dtype == dtype
    exact, rough = torch.cat(exact), torch.cat(rough)
    assert 0 < (rough - exact).norm() / exact.norm() < 0.05


def test_reading_in_a_session_equals_the_training_pair(model):
    chunk = torch.randint(256, (3, n))
    openings = torch.tensor([[0, READ]]).repeat(3, 1)
    pair = model(torch.stack([chunk, chunk], 1), openings)[:, 1]
    session = Session(model, 3)
    logits = session.prefill(chunk, READ)
    for k in range(n):
        torch.testing.assert_close(logits, pair[:, k], atol=1e-4, rtol=1e-4)
        logits = session.step(chunk[:, k])


@pytest.mark.parametrize("history", HISTORIES)
def test_past_its_capacity_a_session_equals_a_fresh_prefill_of_what_it_holds(model, history):
    capacity, prompt = 4 * n, 3 * n + 3
    text = torch.randint(256, (1, 9 * n))
    session = Session(model, 1, history, capacity)
    session.prefill(text[:, :prompt])
    buffer, begin, prompt_chunks = session.cache.data_ptr(), 0, 3
    for t in range(prompt, 9 * n):
        logits = session.step(text[:, t])
        if t + 1 - begin == capacity:  # the oldest two of four chunks go
            begin, prompt_chunks = begin + 2 * n, max(0, prompt_chunks - 2)
        held = text[:, begin : t + 1]
        padded = torch.cat([held, torch.zeros(1, n - held.shape[1] % n, dtype=torch.long)], 1)
        uncached = model(padded.view(1, -1, n), history=history, prompt_chunks=prompt_chunks)
        expected = uncached.flatten(1, 2)[:, held.shape[1]]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        assert session.cache_entries == entries(history, prompt_chunks * n, held.shape[1])
    assert begin == 6 * n and session.cache.data_ptr() == buffer  # the buffer is made once


def test_a_longer_prompt_is_cut_from_the_left_by_whole_chunks():
    prompt = bytes(range(100))
    assert g.newest(prompt, 4 * n, n) == prompt[3 * n :]
    assert g.newest(prompt[:63], 4 * n, n) == prompt[:63]
    assert g.newest(prompt[:64], 4 * n, n) == prompt[n:64]


def test_greedy_is_deterministic_and_equals_the_uncached_forward(model):
    prompt = b"any bytes \xff\x00 at all"
    written = generate(model, prompt, 40, history_chunks=8)
    assert written == generate(model, prompt, 40, history_chunks=8) and len(written) == 40
    text = list(prompt)
    while len(text) < len(prompt) + 40:
        padded = torch.tensor(text + [0] * (n - len(text) % n)).view(1, -1, n)
        text.append(model(padded).flatten(1, 2)[0, len(text)].argmax().item())
    assert bytes(text[len(prompt) :]) == written


def test_sampling_is_by_seed_and_stops_at_the_stop_byte(model):
    sample = lambda seed, **more: generate(model, b"x", 30, temperature=1.5, seed=seed, **more)
    assert sample(1) == sample(1) != sample(2)
    assert sample(1, stop=sample(1)[10]) == sample(1)[: sample(1).index(sample(1)[10])]
    greedy = generate(model, b"x", 30)
    assert generate(model, b"x", 30, temperature=1.5, top_k=1) == greedy
    assert generate(model, b"x", 30, temperature=1e-300) == greedy


def test_samples_of_one_prefill_equal_separate_runs(model):
    session = Session(model)
    logits = session.prefill(g.as_rows(b"once " * 5))
    fork = session.fork(3)
    rows = torch.stack(list(write(fork, logits.expand(3, -1), 40, 1.2, 9, seed=5)), 1)
    for row in range(3):
        alone = generate(model, b"once " * 5, 40, temperature=1.2, top_k=9, seed=5 + row)
        assert bytes(rows[row].tolist()) == alone


def test_a_prompts_sketch_tokens_can_be_given(model):
    prompt = torch.randint(256, (2, 3 * n + 5))
    memory = model.remember(prompt[:, : 3 * n].view(2, 3, n))
    logits = Session(model, 2).prefill(prompt)
    torch.testing.assert_close(Session(model, 2).prefill(prompt, memory=memory), logits)
    assert not torch.allclose(Session(model, 2).prefill(prompt, memory=-memory), logits)


def test_a_batch_of_prompts_equals_separate_runs(model):
    prompts = [b"first " * 6, b"second" * 6]
    session = Session(model, 2)
    logits = session.prefill(torch.cat([g.as_rows(prompt) for prompt in prompts]))
    rows = torch.stack(list(write(session, logits, 40, 0.0, None, seed=0)), 1)
    for row, prompt in zip(rows.tolist(), prompts):
        assert bytes(row) == generate(model, prompt, 40)


def test_a_full_cache_grows_with_every_byte_and_a_sketched_one_by_m_a_chunk(model):
    sizes = {}
    for history in HISTORIES:
        session = Session(model, 1, history, capacity=9 * n)
        session.prefill(torch.randint(256, (1, 2 * n)))
        for _ in range(4 * n):
            session.step(torch.zeros(1, dtype=torch.long))
        sizes[history] = session.cache_entries
    assert sizes == {
        "sketch": 6 * m + 1,
        "prompt": 2 * m + 1 + 4 * n,
        "full": 6 * n + 1,
        "none": 1,
    }


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda model: Session(model, history="nine"), "history is 'nine'"),
        (lambda model: Session(model, capacity=n), "capacity is 16"),
        (
            lambda model: Session(model).prefill(torch.zeros(1, 99)),
            "prompt is 99 bytes, expected under 64",
        ),
        (lambda model: generate(model, b"", 1, temperature=-1), "temperature is -1"),
        (lambda model: generate(model, b"", -1), "length is -1"),
        (lambda model: generate(model, b"", 1, top_k=0), "top-k is 0"),
    ],
)
def test_impossible_calls_are_refused(model, call, said):
    with pytest.raises(ValueError, match=said):
        call(model)


# ------------------------------------------------------------------------------ command line


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(path, make_model(), {"history": "sketch"})
    return str(path)


def test_a_pipe_gets_the_raw_bytes(checkpoint, monkeypatch):
    out = piped(
        monkeypatch,
        [
            "--checkpoint",
            checkpoint,
            "--prompt",
            "caf\u00e9 \udcff",
            "--max-new-bytes",
            "50",
            "--seed",
            "3",
        ],
    )
    model, _ = g.load_checkpoint(checkpoint)
    assert out == generate(model, "café ".encode() + b"\xff", 50, temperature=0.8, seed=3)


@pytest.mark.parametrize(
    "prompt", [b"", bytes(range(256)), b"\xe2\x82"], ids=["none", "all", "half a letter"]
)
def test_a_prompt_may_hold_any_bytes_or_none(checkpoint, tmp_path, capsys, prompt, monkeypatch):
    (tmp_path / "prompt").write_bytes(prompt)
    arguments = ["--checkpoint", checkpoint, "--max-new-bytes", "9"]
    from_file = piped(monkeypatch, [*arguments, "--prompt-file", str(tmp_path / "prompt")])
    assert ("the first 208 bytes are cut" in capsys.readouterr().err) == (len(prompt) == 256)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(prompt)))
    assert piped(monkeypatch, arguments) == from_file and len(from_file) == 9


def test_a_terminal_never_gets_a_control_character(monkeypatch):
    class Terminal(io.StringIO):
        isatty = lambda self: True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    out = g.Out()
    for byte in b"a\x1b[2J\x07\x7f\tb\n" + "é€\x9b".encode() + b"\xff\xe2\x82":
        out.write(bytes([byte]))
    out.end()
    assert terminal.getvalue() == "a^[[2J^G^?\tb\né€<9b>\ufffd\ufffd\n"


def test_samples_equal_separate_runs_and_stats_count_the_cache(checkpoint, capsys, monkeypatch):
    arguments = ["--checkpoint", checkpoint, "--prompt", "x" * 30, "--max-new-bytes", "9"]
    both = piped(monkeypatch, [*arguments, "--samples", "2", "--seed", "4", "--stats"])
    one, two = (piped(monkeypatch, [*arguments, "--seed", seed]) for seed in ("4", "5"))
    assert both == b"--- sample 0\n" + one + b"\n--- sample 1\n" + two + b"\n"
    said = capsys.readouterr().err
    assert "15 entries, 8 KiB, for the 38 bytes" in said  # 2 chunks of 4 tokens, START, 6 bytes
    assert "as full text 39 entries, 20 KiB" in said
    none = piped(monkeypatch, [*arguments, "--samples", "2", "--max-new-bytes", "0", "--stats"])
    assert none == b"--- sample 0\n\n--- sample 1\n\n"


def test_read_prints_chunk_beside_chunk_with_its_accuracy(checkpoint, tmp_path, capsys):
    (tmp_path / "text").write_bytes(b"sixteen bytes ..another chunk...\nrest")
    g.main(["--checkpoint", checkpoint, "--read", str(tmp_path / "text")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "text |sixteen bytes ..|" and lines[2] == "text |another chunk...|"
    read = g.read_back(g.load_checkpoint(checkpoint)[0], (tmp_path / "text").read_bytes())
    right = sum(a == b for a, b in zip(b"sixteen bytes ..another chunk...", read))
    assert (
        lines[-1].startswith(f"{right} of 32 bytes right: {right / 32:.4f}")
        and "5 bytes at the end" in lines[-1]
    )


def test_read_says_which_bytes_are_misread_most_often(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(g, "read_back", lambda model, text: b"abbaabbaab\x80aabba")
    g.print_reading(g.load_checkpoint(checkpoint)[0], b"abcaabcaab\nadbba")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "b'c' read as b'b', times: 2"
    assert sorted(lines[3:5]) == [
        "b'\\n' read as b'\\x80', times: 1",
        "b'd' read as b'a', times: 1",
    ]
    assert lines[5].startswith("12 of 16 bytes right")


def test_a_reader_that_has_seen_enough_ends_a_program_without_a_word(monkeypatch, capfd):
    turned = []  # to the null device, so that nothing complains when Python ends
    monkeypatch.setattr(os, "dup2", lambda new, old: turned.append(old))
    with pytest.raises(SystemExit) as ended, g.errors_in_one_line("generate.py", ""):
        raise BrokenPipeError
    assert ended.value.code == 141 and turned == [sys.stdout.fileno()]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--checkpoint", "missing.pt"], "missing.pt is not there"),
        (["--checkpoint", "short.pt"], "damaged or not a checkpoint"),
        (["--checkpoint", "foreign.pt"], "damaged or not a checkpoint"),
        (["--checkpoint", "text.pt"], "damaged or not a checkpoint"),
        (["--checkpoint", "empty.pt"], "damaged or not a checkpoint"),
        (["--checkpoint", "misfit.pt"], "does not fit this code's config"),
        (["--checkpoint", "unknown.pt"], "does not fit this code's config"),
        (["--temperature", "-0.5"], "temperature is -0.5"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--max-new-bytes", "-1"], "length is -1"),
        (["--top-k", "0"], "top-k is 0"),
        (["--samples", "0"], "--samples is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--samples", str(10**11)], "not enough memory, try a smaller --samples"),
        (["--history-chunks", "1"], "--history-chunks is 1"),
        (["--device", "tpu"], "device 'tpu' is not there"),
        (["--device", "cuda"], "device 'cuda' is not there"),
        (["--ask", "who?"], "--ask QUESTION and --context FILE"),
        (["--lines", "1-2"], "--lines A-B is for --ask"),
        (["--context", "tiny"], "--ask QUESTION and --context FILE"),
        (["--ask", "who?", "--context", "tiny"], "never learned to answer"),
        (["--ask", "who?", "--context", "missing"], "missing is not there, expected a file"),
        (["--ask", "", "--context", "tiny", "--stats"], "are for continuing a text"),
        (["--ask", "who?", "--context", "tiny", "--history-chunks", "9"], "are for continuing"),
        (["--read", "tiny", "--samples", "2"], "are for continuing a text"),
        (["--read", "tiny", "--history", "full"], "--history is not for --read"),
        (["--read", "missing"], "missing is not there, expected a file"),
        (["--read", "tiny"], "at least one chunk"),
        (["--prompt-file", "missing"], "missing is not there, expected a file"),
    ],
)
def test_bad_input_gets_one_clear_line(checkpoint, tmp_path, monkeypatch, arguments, said):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("here it is there")
    monkeypatch.chdir(tmp_path)
    whole = (tmp_path / "model.pt").read_bytes()
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    (tmp_path / "short.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pt").write_bytes(b"no checkpoint")
    (tmp_path / "tiny").write_bytes(b"x")
    (tmp_path / "empty.pt").touch()
    torch.save({"weights": 1}, tmp_path / "foreign.pt")
    torch.save(content | {"config": content["config"] | {"layers": 3}}, tmp_path / "misfit.pt")
    torch.save(content | {"config": content["config"] | {"colour": 3}}, tmp_path / "unknown.pt")
    if not {"--read", "--prompt-file", "--ask"} & set(arguments):
        arguments = ["--prompt", "x"] + arguments
    with pytest.raises(SystemExit) as stopped:
        g.main(["--checkpoint", checkpoint] + arguments)
    assert said in stopped.value.code and "\n" not in stopped.value.code


@pytest.fixture
def answering(tmp_path):
    """A checkpoint that has seen contexts of three chunks, and a context."""
    path = tmp_path / "answering.pt"
    save_checkpoint(path, make_model(), {"history": "sketch", "far": 3})
    (tmp_path / "context").write_bytes(b"first line\nsecond line\nthird\n")
    return ["--checkpoint", str(path), "--context", str(tmp_path / "context")]


def test_an_answer_is_what_is_written_after_the_question_up_to_stop(model, monkeypatch):
    context, question = bytes(range(32, 72)), b"what?"
    line = data.asked(context, question)
    assert line == context + b"\x05what?\x06"
    written = generate(model, line, 20, history_chunks=8)
    assert g.answer(model, context, question, 20) == (written, False)
    monkeypatch.setattr(g, "STOP", written[7])
    before = written.index(written[7])
    assert g.answer(model, context, question, 20) == (written[:before], True)
    monkeypatch.setattr(g, "STOP", written[before])  # right after the limit is an end, too
    assert g.answer(model, context, question, before) == (written[:before], True)
    for texts in ((b"a\x04", b"q"), (b"", b"\x05")):
        with pytest.raises(ValueError, match="which marks a role"):
            g.answer(model, *texts, 20)


def test_ask_reads_lines_of_a_context_and_says_what_was_cut(answering, tmp_path, capsys):
    g.main([*answering, "--ask", "what?", "--lines", "2-3", "--max-new-bytes", "9"])
    said = capsys.readouterr()
    expected, ended = g.answer(
        g.load_checkpoint(answering[1])[0], b"second line\nthird\n", b"what?", 9
    )
    assert said.out == g.printable(expected.decode("utf-8", "replace")) + "\n" and not ended
    assert "cut at --max-new-bytes 9" in said.err and "context" not in said.err
    long = bytes(range(32, 127))
    (tmp_path / "context").write_bytes(long)
    g.main([*answering, "--ask", "what?", "--max-new-bytes", "9"])
    said = capsys.readouterr()
    assert "the context is 95 bytes, expected at most 63: the first 32 bytes are cut" in said.err
    expected, _ = g.answer(g.load_checkpoint(answering[1])[0], long[-63:], b"what?", 9)
    assert said.out == g.printable(expected.decode("utf-8", "replace")) + "\n"


@pytest.mark.parametrize("lines", ["0-1", "2-1", "1-4", "1", "a-b", "-", "1-2-3"])
def test_lines_that_are_not_there_are_refused(answering, lines):
    with pytest.raises(
        SystemExit, match=f"--lines is '{lines}', expected A-B with 1 <= A <= B <= 3"
    ):
        g.main([*answering, "--ask", "what?", "--lines", lines])


@pytest.mark.parametrize(
    "message, known",
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("in user code: memory = model.remember(seen)", False),
    ],
)
def test_only_a_want_of_memory_is_called_one(message, known):
    with pytest.raises(SystemExit) if known else contextlib.nullcontext():
        exit_if_out_of_memory("train.py", "--batch-bytes", RuntimeError(message))


def test_the_weights_that_come_with_the_code_are_small_and_plain():
    assert g.WEIGHTS.stat().st_size <= 6_000_000
    assert read_checkpoint(g.WEIGHTS).keys() == {"format", "config", "model", "info"}


def test_the_weights_that_come_with_the_code_read_sketches():
    model, _ = load_checkpoint(g.WEIGHTS)
    noise = bytes(torch.randint(256, (64 * 64,)).tolist())
    text = Path(__file__).read_bytes()[: 64 * 64]
    for written, least in ((noise, 0.97), (text, 0.97)):
        read = g.read_back(model, written)
        assert sum(a == b for a, b in zip(written, read)) / len(written) > least


def test_the_weights_that_come_with_the_code_recall():
    model, _ = load_checkpoint(g.WEIGHTS)
    rng = data.generator("weights")
    asked = [data.recall_example(None, rng, 64, 8, 1 + i % 8) for i in range(64)]
    assert exact_match(model, asked, "sketch") > 0.9


def test_a_fresh_clone_answers_with_the_weights_that_come_with_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # nothing is trained here
    (tmp_path / "facts").write_text("al=0000\nbe=1eef\nga=3dde\n" * 3)
    g.main(["--ask", "be", "--context", "facts", "--device", "cpu"])
    said = capsys.readouterr()
    assert said.out == "1eef\n"
    assert "runs/sketch-instruct/model.pt is not there, so this is " in said.err


def test_what_was_trained_here_comes_before_the_weights_that_come_with_the_code(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / g.CHECKPOINT
    own.parent.mkdir(parents=True)
    own.touch()
    assert g.find_checkpoint(None, asks=False) == g.CHECKPOINT
    assert g.find_checkpoint(None, asks=True) == str(g.WEIGHTS)
    assert g.find_checkpoint("other.pt", asks=False) == "other.pt"
