import io
import itertools
import json
import math
import os
import signal
from contextlib import redirect_stderr, redirect_stdout
from functools import partial

import pytest
import torch
from conftest import PRESETS, make_model
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.testing import assert_close

import evaluate
import generate
import train
from common import load_checkpoint, read_checkpoint, save_checkpoint
from console import UserError
from curriculum import CHUNK_PARTS, TABLES, Stage, sample_batches, scale_stages
from data import load_corpus
from questions import EXAMPLES, QUESTION, Example, question_batch
from train import Settings
from vist2 import Vist2, loss

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def train_on(folder, out, *arguments):
    usual = ["--preset", "mini", "--chunk", "16", "--steps", "15", "--device", "cpu"]
    train.main([*usual, "--data", str(folder / "text"), "--out", str(out), *arguments])
    return out


def begin(stage, folder, start="curriculum/model.pt") -> list[str]:
    return ["--stage", stage] + ["--start", str(folder / start)] * (stage == "instruct")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of unbroken runs, one for each table, and of the text that they learned."""
    torch.set_num_threads(1)
    before = [signal.signal(s, signal.default_int_handler) for s in SIGNALS]  # if ignored
    folder = tmp_path_factory.mktemp("whole")
    (folder / "text").write_text("".join(f"line {i}: a fox; {i * 7919:x}\n" for i in range(999)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "SAVE_EVERY", 3)
        patch.setattr(evaluate, "WINDOWS", 4)
        patch.setattr(evaluate, "QUESTIONS", 8)
        patch.setattr(train, "report", lambda *_: None)  # takes as long as a run
        for stage in TABLES:
            train_on(folder, folder / stage, *begin(stage, folder))
        yield folder
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def start(whole, tmp_path):
    """start(name, *arguments): a run like the whole ones, in a folder of its own."""
    return lambda name, *arguments: train_on(whole, tmp_path / name, *arguments)


def before_each_step(patch, act):
    """Have act(step, batches by task) called before each step from now on, counted from 1."""
    backward, steps = train.backward, itertools.count(1)

    def watched(model, batches, settings):
        act(next(steps), {task: batch for task, _, batch in batches})
        return backward(model, batches, settings)

    patch.setattr(train, "backward", watched)


def interrupt(patch, step, number=signal.SIGINT):
    before_each_step(patch, lambda at, _: at == step and signal.raise_signal(number))


def learn_nothing(patch) -> list[dict]:
    """Have steps do no more than add their batches to the list that is returned."""
    given: list[dict] = []
    patch.setattr(train, "backward", lambda *step: {task: 1.0 for task, *_ in step[1]})
    before_each_step(patch, lambda _, batches: given.append(batches))
    return given


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def info_of(folder):
    return read_checkpoint(folder / "model.pt")["info"]


def assert_same_run(left, right):
    """Every weight, state of an optimizer, setting and line of the log, bit for bit."""
    assert log_of(left) == log_of(right)
    assert [line["step"] for line in log_of(left)] == [*range(1, info_of(left)["steps"] + 1)]
    left, right = (read_checkpoint(folder / "model.pt") for folder in (left, right))
    assert_close(left.pop("model"), right.pop("model"), atol=0, rtol=0)
    for our, their in zip(left["optimizers"], right["optimizers"], strict=True):
        assert_close(our.pop("state"), their.pop("state"), atol=0, rtol=0)
    assert left == right


@pytest.mark.parametrize("stage", TABLES)
def test_a_run_that_signals_stop_in_each_stage_and_resumed_equals_the_unbroken_run(
    start, whole, tmp_path, monkeypatch, capsys, stage
):
    arguments, done, path = begin(stage, whole), 0, tmp_path / "run" / "model.pt"
    table = scale_stages(TABLES[stage], "sketch", 15)
    ends = list(itertools.accumulate(row.steps for row in table))
    for row, end, number in zip(table, ends, itertools.cycle(SIGNALS), strict=False):
        stop = end - row.steps // 2  # in the middle; of a single step, within it
        assert done < stop < ends[-1]
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
            before_each_step(patch, lambda *_: path.write_bytes(b"damaged"))
            interrupt(patch, stop - done, number)
            start("run", *arguments, *["--resume"] * (done > 0))
        said = f"stopped at step {stop} of {ends[-1]}: the same command with --resume goes on"
        assert stopped.value.code == 130 and said in capsys.readouterr().err
        assert info_of(path.parent)["step"] == stop
        done = stop
    for _ in range(2):  # the second time nothing is left to do
        assert_same_run(whole / stage, start("run", *arguments, "--resume"))
    evaluated = [line.get("held out", {}) for line in log_of(path.parent)]
    assert [bool(found) for found in evaluated] == [False, False, True] * 5
    assert "recall 8" in evaluated[14] and ("recall 8" in evaluated[2]) == (stage == "instruct")


def test_a_mistake_ends_in_one_line_a_bug_in_its_traceback(start, whole, tmp_path, monkeypatch):
    def slip(step, _):
        if step == 6:
            raise error("too many values to unpack")

    for error in (ValueError, UserError):
        raised = SystemExit if error is UserError else error
        with monkeypatch.context() as patch, pytest.raises(raised) as caught:
            before_each_step(patch, slip)
            start(error.__name__)
        assert type(caught.value) is raised
        assert caught.traceback[-1].name == ("command_line" if error is UserError else "slip")
    assert caught.value.code == "train.py: too many values to unpack"
    folder = tmp_path / "UserError"
    assert info_of(folder)["step"] == 3 and len(log_of(folder)) == 5
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "half a li')  # as a power cut leaves it
    assert_same_run(whole / "curriculum", start("UserError", "--resume"))


@pytest.mark.parametrize("torn", [b'{"step": 2, "s', b"", b"[]", b"{}", b"7", b"\0", b"\xff"])
def test_a_log_loses_what_no_checkpoint_stands_behind_and_nothing_else(tmp_path, torn):
    path, lines = tmp_path / "log.jsonl", [b'{"step": %d}\n' % step for step in range(1, 7)]
    for end in ([], [torn], [*lines[3:5], torn], [torn, b"\n", torn, b"\n"]):
        path.write_bytes(b"".join(lines[:3] + end))
        with train.open_log(path, 3) as log:
            log.write(lines[3].decode())
        assert path.read_bytes() == b"".join(lines[:4])
    path.write_bytes(lines[0] + torn + b"\n" + b"".join(lines[2:]))
    train.open_log(path, 4).close()
    assert path.read_bytes() == lines[0] + b"".join(lines[2:4])
    train.open_log(path, 0).close()  # a new run
    assert path.read_bytes() == b""


def test_a_second_run_in_one_folder_is_refused(start, whole, tmp_path, monkeypatch, capsys):
    said = []

    def start_another(step, batches):
        if step in (2, 5):  # before and after the first checkpoint
            capsys.readouterr()
            with pytest.raises(SystemExit) as refused:
                start("run", *["--resume"] * (step == 5))
            said.append((refused.value.code, capsys.readouterr().err))

    before_each_step(monkeypatch, start_another)
    assert_same_run(whole / "curriculum", start("run"))
    line = f"train.py: another run writes to {tmp_path / 'run'}, expected one of its own"
    assert said == [(line, "")] * 2  # no bar without the lock


def test_what_is_not_finite_leaves_the_last_good_checkpoint(start, tmp_path, monkeypatch):
    backward, path = train.backward, tmp_path / "run" / "model.pt"

    def broken(model, *arguments):
        losses = backward(model, *arguments)
        if len(log_of(path.parent)) == good:
            model.speller.weight.grad[0, 0] = math.inf
        return losses

    monkeypatch.setattr(train, "backward", broken)
    stands = "the checkpoint of step 3 stands"
    for good, more, left in ((1, [], "nothing was"), (4, [], stands), (3, ["--resume"], stands)):
        with pytest.raises(SystemExit, match=f"^train.py: not finite at .* {good + 1}: .*{left}"):
            start("run", *more)
        assert path.exists() == (left == stands)
    assert all(weight.isfinite().all() for weight in read_checkpoint(path)["model"].values())


def test_a_full_disk_is_named_and_leaves_the_last_checkpoint(start, tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    before_each_step(monkeypatch, lambda at, _: at == 6 and monkeypatch.setattr(os, "fsync", full))
    with pytest.raises(SystemExit, match="^train.py: cannot write .*model.pt: No space left on"):
        start("run")
    assert info_of(tmp_path / "run")["step"] == 3 and len(log_of(tmp_path / "run")) == 6


def test_a_second_ctrl_c_ends_even_an_evaluation(start, whole, monkeypatch, capsys):
    evaluate_briefly, ended = train.evaluate_briefly, []

    def interrupted(*arguments, **more):
        bar, result = capsys.readouterr().err.split("\r")[-1], evaluate_briefly(*arguments, **more)
        for _ in range(1 + len(ended)):
            signal.raise_signal(signal.SIGINT)
        ended.append(bar)
        return result

    for more in ([], ["--resume"]):
        with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
            patch.setattr(train, "evaluate_briefly", interrupted)
            start("run", *more)
    assert len(ended) == 1 and ended[0].startswith("evaluating: ")  # the second had no end
    assert_same_run(whole / "curriculum", start("run", "--resume"))
    assert capsys.readouterr().err.split("\r")[-1].startswith("long windows: 100%")


def test_a_closed_pipe_costs_no_step_and_no_line_of_the_log(start, whole, tmp_path, monkeypatch):
    """Ctrl-C ends the `tee` of `train.py 2>&1 | tee log` at once, and then the bar fails."""

    def closed(*_, **__):
        raise BrokenPipeError

    for step in (1, 2):  # before any other checkpoint, and on from there
        with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
            patch.setattr(train.tqdm, "update", closed)
            start("run", *["--resume"] * (step > 1))
        assert info_of(tmp_path / "run")["step"] == step
    assert_same_run(whole / "curriculum", start("run", "--resume"))
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        ends = lambda at, _: at == 3 and patch.setattr(train.tqdm, "refresh", closed)
        before_each_step(patch, ends)
        patch.setattr(train.tqdm, "update", lambda bar: bar.refresh())
        start("other")  # its evaluation at step 3 has no bar to write to
    assert len(log_of(tmp_path / "other")) == 3 == info_of(tmp_path / "other")["step"]


def test_all_histories_begin_alike_and_learn_the_same_windows(start, monkeypatch):
    torch.manual_seed(7)
    weights, windows, kinds = Vist2(SETTINGS.config).state_dict(), [], {"text", *CHUNK_PARTS}
    for history, steps in (("sketch", 15), ("full", 10), ("none", 10)):
        given = learn_nothing(monkeypatch)
        folder = start(history, "--history", history, "--seed", "7")
        content = read_checkpoint(folder / "model.pt")
        assert (content["info"]["history"], content["info"]["steps"]) == (history, steps)
        assert ("reading text" in log_of(folder)[2]["held out"]) == (history == "sketch")
        assert_close(content["model"], weights, atol=0, rtol=0)
        rows = [[s[task].text.flatten(1) for task in s if task in kinds] for s in given]
        windows.append([torch.cat(step).tolist() for step in rows if step])
    assert len(windows[0]) == 10 and windows[0] == windows[1] == windows[2]


def test_max_context_and_window_are_the_longest_of_training(start, whole, tmp_path, monkeypatch):
    given, longest = learn_nothing(monkeypatch), [info_of(whole / "curriculum")["max_context"]]
    for count in range(5):
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            interrupt(patch, 1)
            start("run", *begin("instruct", whole), *["--resume"] * (count > 0))
        rows = [batch.text.flatten(1) for task, batch in given[-1].items() if task in EXAMPLES]
        longest.append(max(int((row == QUESTION).int().argmax(1).max()) for row in rows))
        assert info_of(tmp_path / "run")["max_context"] == max(longest) > 0
        assert info_of(tmp_path / "run")["max_window"] == 256  # of the run before: its own have 64
    assert longest[-1] < max(longest)  # else a resume may have forgotten it


def test_own_examples_take_the_place_of_the_generated_ones(start, whole, tmp_path, monkeypatch):
    own, given = tmp_path / "own.jsonl", learn_nothing(monkeypatch)
    own.write_text(json.dumps({"context": "c" * 99, "prompt": "Hue?", "response": "blue"}))
    model, info = load_checkpoint(whole / "curriculum" / "model.pt")  # shared without optimizers
    save_checkpoint(tmp_path / "shared.pt", model.half(), info | {"max_context": 5000})
    instruct = [*begin("instruct", tmp_path, "shared.pt"), "--instruct", str(own)]
    further, info = load_checkpoint(start("run", *instruct) / "model.pt")
    assert info["max_context"] == 5000
    assert_close(further.state_dict(), model.float().state_dict(), atol=0, rtol=0)
    assert all(batches.keys() == {"own", "whole", "reading"} for batches in given)
    assert b"cc\x05Hue?\x06blue\x04" in bytes(given[0]["own"].text[0].flatten().tolist())
    own.write_text(own.read_text().replace("blue", "pink"))
    with pytest.raises(SystemExit, match="instruct was"):
        start("run", *instruct, "--resume")


SETTINGS = Settings(preset="mini", chunk=16, batch_bytes=128, bf16=False)
QUARTERS = dict(text=1 / 4, sixteenth=1 / 4, whole=1 / 4)
EVERYTHING = Stage("all", 1, 1, 1 / 4, 1 / 8, **QUARTERS, recall=1.0, context=1)


def draw(folder) -> list:
    corpus = load_corpus(str(folder / "text"), 64)
    return list(sample_batches(EVERYTHING, SETTINGS.config, corpus, SETTINGS, 0, 0))


def test_a_steps_gradient_is_the_weighted_sum_of_all_losses(whole):
    model, batches = make_model(), draw(whole)
    log = train.backward(model, batches, SETTINGS)
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    total, spelled = 0, {}
    for task, share, batch in batches:
        text, openings, weights, _ = batch
        full = task in ("text", "spelling")
        target = text[:, :1].expand_as(text) if task == "reading" else text  # copies have faults
        nats = loss(model(text, openings, "full" if full else "sketch"), target, weights)
        if task != "text":
            seen = text if task == "spelling" else text[:, :-1]
            spelled[task] = loss(model.predict_patch_bytes(model.compress(seen)), seen)
            nats = spelled[task] if task == "spelling" else nats + 0.5 * spelled[task]
        total += share * nats
    total.backward()
    assert_close(found, {name: p.grad for name, p in model.named_parameters()})
    assert log.keys() == {"accuracy", *(task for task, *_ in batches)}
    assert log["spelling"] == pytest.approx(spelled["copy"].item() / math.log(2), rel=1e-4)


def test_each_step_clips_its_gradient_and_sets_both_rates(start):
    taken = []

    def look(optimizer, *_):
        [group] = optimizer.param_groups
        norms = [p.grad.norm() for p in group["params"] if p.grad is not None]
        taken.append((group["lr"], torch.stack(norms).norm().item()))

    hook = register_optimizer_step_pre_hook(look)
    log = log_of(start("run", "--lr", "0.01", "--steps", "6"))
    hook.remove()
    assert min(line["grad_norm"] for line in log) > 1  # else there was nothing to clip
    for step, ((muon, a), (adamw, b)) in enumerate(zip(taken[::2], taken[1::2], strict=True)):
        assert math.hypot(a, b) == pytest.approx(1, rel=1e-4)
        assert muon == pytest.approx(0.01 * train.rate(step, len(log)))
        assert adamw == pytest.approx(0.6 * muon)


def test_the_rate_warms_up_and_falls_over_the_last_two_fifths():
    rates = [train.rate(step, 1000) for step in range(1000)]
    assert rates[:3] == [0.05, 0.1, 0.15] and max(rates) <= 1 and 0.02 < rates[-1] < 0.03
    assert rates[20:600] == [1] * 580
    assert all(a > b for a, b in itertools.pairwise(rates[600:]))


def test_one_batch_of_each_task_is_overfitted_and_what_was_asked_is_answered(whole):
    own = [(b"." * i + b"k=%d\n" % i**5 + b"." * (40 - i), b"%d" % i**5) for i in range(1, 7)]
    batch = question_batch([Example(context, ((b"k", value),)) for context, value in own], 16)
    model, batches = Vist2(SETTINGS.config), [*draw(whole), ("own", 1.0, batch)]
    optimizers = train.make_optimizers(model, 0.02)
    for _ in range(32):
        reached = train.backward(model, batches, SETTINGS)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert reached.pop("accuracy") > 0.99 and reached.pop("spelling") < 2  # bits, of 8
    assert len(reached) == len(batches) - 1 and max(reached.values()) < 0.5
    for context, value in own:
        assert generate.answer(model, context, b"k", 9) == (value, True)


def test_every_option_reaches_the_run(start, monkeypatch):
    """Compiled by tracing only, not to machine code, which would take a C++ compiler."""
    traced, compile = [], torch.compile
    count = lambda graph, inputs: traced.append(1) or graph.forward
    monkeypatch.setattr(torch, "compile", partial(compile, backend=count))
    monkeypatch.setitem(PRESETS, "mini", PRESETS["mini"] | {"layers": 1})  # tracing takes seconds
    monkeypatch.setitem(TABLES, "curriculum", (Stage("whole", 1, whole=1),))
    plain = log_of(start("plain", "--steps", "2"))
    options = "steps=3 history=none cell=8x4 chunk=32 batch-bytes=1024 lr=0.001 seed=1 bf16 compile"
    for option in options.split():
        log = log_of(start(option, "--steps", "2", *f"--{option}".split("=")))
        assert log != plain or option == "compile", option
        if option in ("bf16", "compile"):  # as good as, but not the same
            for line, exact in zip(log, plain, strict=True):
                assert line | {"stage": 0} == pytest.approx(exact | {"stage": 0}, rel=0.02)
    assert traced


def test_what_is_not_said_comes_from_the_preset_and_the_stage():
    usual = Settings(device="cpu").resolve()
    assert (usual.steps, usual.batch_bytes, usual.lr) == (5600, 2048, 5e-3)
    assert usual.bf16 is False and usual.out == "runs/sketch"
    small = Settings(preset="small", history="none", stage="instruct", device="cpu").resolve()
    assert (small.steps, small.batch_bytes, small.lr) == (500, 2**15, pytest.approx(0.5 * 3e-3))
    assert (small.start, small.out) == ("runs/none/model.pt", "runs/none-instruct")


@pytest.mark.parametrize("option", ["--history prompt", "--preset huge", "--stage third"])
def test_a_choice_that_is_none_is_refused_with_those_that_are(start, capsys, option):
    with pytest.raises(SystemExit, match="2"):
        start("run", *option.split())
    assert "invalid choice" in capsys.readouterr().err


def test_a_run_reports_in_any_encoding_and_moves_no_cursor(start, tmp_path, monkeypatch):
    text, folder = (tmp_path / os.fsdecode(b"%d \xff\xe2\x86\x92\x1b[2J" % i) for i in (1, 2))
    text.write_bytes("a line that no code page has: → \u202e \x1b[2J\n".encode() * 400)
    monkeypatch.setattr(train, "report", evaluate.report)
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="cp1252") for _ in range(2)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        start(folder.name, "--steps", "4", "--data", str(text))
    said, bar = (stream.buffer.getvalue().decode("cp1252") for stream in streams)
    assert "5/5" in bar and "93,008 parameters" in said
    assert all(f"{i} \\udcff\\u2192^[[2J" in said for i in (1, 2)) and "\x1b" not in said
    assert len([line for line in said.splitlines() if line.startswith("  ")]) == 16  # figures


BAD_INPUT = [
    (f"--chunk {2**64}", "chunk is 18446744073709551616, expected int from 1 to"),
    (f"--batch-bytes {10**18}", "--batch-bytes is 1000000000000000000"),
    ("--device cpu:1", "device 'cpu:1' is not there"),
    ("--data .", "new lies in --data ., expected outside it"),
    ("--data=", "the name of the data is empty, expected a file or a folder"),
    ("--resume", "new/model.pt is not there, expected a checkpoint"),
    ("--out done", "is there: --resume goes on with it, --out takes another folder"),
    ("--out no-info --resume", "lacks 'step' in its info"),
    ("--out done --resume --data other", "data was"),
    ("--out done --resume --lr 0.1", "lr was 0.005, now it is 0.1"),
    ("--start done/model.pt", "--start and --instruct are for --stage instruct"),
    ("--instruct=", "--start and --instruct are for --stage instruct"),
    ("--stage instruct --start done/model.pt --instruct=", " is no file, expected a file"),
    ("--stage instruct --start stopped/model.pt", "was stopped at step 2 of 15"),
    ("--stage instruct --start no-config/model.pt", "does not fit this code's config"),
    ("--stage instruct --start done/model.pt --cell 8x4", "cell was (16, 4), now it is (8, 4)"),
    ("--stage instruct --start done/model.pt --history full", "was sketch, now it is full"),
]


def test_bad_input_gets_one_clear_line_and_nothing_is_lost(start, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").write_bytes(b"text" * 999)
    content = read_checkpoint(whole / "curriculum" / "model.pt")
    changed = {"done": {}, "no-info": {"info": {}}, "no-config": {"config": 3}}
    changed["stopped"] = {"info": content["info"] | {"step": 2}}
    for name, changes in changed.items():
        (tmp_path / name).mkdir()
        torch.save(content | changes, tmp_path / name / "model.pt")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for arguments, said in BAD_INPUT:
        with pytest.raises(SystemExit) as refused:
            start("new", *arguments.split())
        assert said in refused.value.code and "\n" not in refused.value.code, arguments
        assert {path: path.read_bytes() for path in files} == files, arguments
        assert not (tmp_path / "new" / "model.pt").exists(), arguments
