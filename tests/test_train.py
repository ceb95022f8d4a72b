import itertools
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import make_model, piped

import evaluate
import generate
import train
from common import load_checkpoint, lock_folder, read_checkpoint, save_checkpoint
from curriculum import CHUNK_PARTS, TABLES, Stage, sample_batches, scale_stages
from data import EXAMPLES, QUESTION, Example, load_corpus, question_batch
from train import Settings
from vist2 import Config, Vist2, loss


@pytest.fixture
def start(tmp_path, small_file, monkeypatch):
    """Runs train.py on a miniature that saves every third step: start(folder, *arguments)."""
    monkeypatch.setattr(train, "SAVE_EVERY", 3)
    monkeypatch.setattr(evaluate, "WINDOWS", 4)
    monkeypatch.setattr(evaluate, "QUESTIONS", 8)
    monkeypatch.setattr(train, "report", lambda *_: None)  # takes as long as a run

    def start(name, *arguments):
        usual = ["--preset", "mini", "--chunk", "16", "--steps", "12", "--device", "cpu"]
        usual += ["--data", str(small_file), "--out", str(tmp_path / name)]
        train.main([*usual, *arguments])
        return tmp_path / name

    return start


def before_each_step(monkeypatch, act):
    """Have act(step, batches) called before each step that is taken from now on, counted from 1,
    where it can be interrupted."""
    backward, steps = train.backward, itertools.count(1)

    def watched(measure, model, batches, settings):
        act(next(steps), batches)
        return backward(measure, model, batches, settings)

    monkeypatch.setattr(train, "backward", watched)


def signal_at(monkeypatch, step, number=signal.SIGINT):
    before_each_step(monkeypatch, lambda at, _: at == step and signal.raise_signal(number))


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def info_of(folder):
    return read_checkpoint(folder / "model.pt")["info"]


def assert_same(left, right, path=""):
    """Every weight, every number, bit for bit."""
    assert type(left) is type(right), path
    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_same(left[key], right[key], f"{path}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), path
        for index, pair in enumerate(zip(left, right)):
            assert_same(*pair, f"{path}/{index}")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    else:
        assert left == right, path


def assert_same_run(left, right):
    assert_same(read_checkpoint(left / "model.pt"), read_checkpoint(right / "model.pt"))
    assert log_of(left) == log_of(right)
    assert [line["step"] for line in log_of(left)] == [*range(1, info_of(left)["steps"] + 1)]


# ----------------------------------------------------------------------------- stop and resume


@pytest.mark.parametrize("stage", TABLES)
def test_a_run_that_signals_stop_in_each_stage_and_resumed_equals_the_unbroken_run(
    start, monkeypatch, capsys, stage
):
    arguments, done, before = ["--stage", stage], 0, b""
    if stage == "instruct":
        begun = start("begun", "--steps", "4") / "model.pt"
        before = begun.read_bytes()
        arguments += ["--start", str(begun)]
    whole = start("whole", *arguments)
    table = scale_stages(TABLES[stage], "sketch", 12)
    ends = list(itertools.accumulate(stage.steps for stage in table))
    signals = itertools.cycle([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    for stage, end, number in zip(table, ends, signals):
        stop = end - stage.steps // 2  # in the middle; of a single step, within it
        assert done < stop < ends[-1]
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
            signal_at(patch, stop - done, number)
            start("parts", *arguments, *["--resume"] * (done > 0))
        said = f"stopped at step {stop} of {ends[-1]}: the same command with --resume goes on"
        assert stopped.value.code == 130 and said in capsys.readouterr().err
        assert info_of(whole.parent / "parts")["step"] == stop
        done = stop
    assert_same_run(whole, start("parts", *arguments, "--resume"))
    assert not before or before == begun.read_bytes()


class Killed(BaseException):
    pass


def kill_at(monkeypatch, step):
    def kill(at, _):
        if at == step:
            raise Killed

    before_each_step(monkeypatch, kill)


@pytest.mark.parametrize("end", ["", '{"step": 6, "half a li', "\n[]\n\n{}\n", "\x00" * 99])
def test_a_killed_run_resumes_from_its_last_checkpoint_whatever_its_log_ends_in(
    start, monkeypatch, end
):
    whole = start("whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 6)
        start("parts")
    parts = whole.parent / "parts"
    assert info_of(parts)["step"] == 3 and len(log_of(parts)) == 5
    with (parts / "log.jsonl").open("a") as log:
        log.write(end)
    assert_same_run(whole, start("parts", "--resume"))


@pytest.mark.parametrize("line", ['{"step": 2, "sta', ""])
def test_a_torn_line_that_the_checkpoint_stands_behind_is_named_and_nothing_lost(
    start, monkeypatch, tmp_path, line
):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        signal_at(patch, 4)
        start("run")
    log, model = tmp_path / "run" / "log.jsonl", (tmp_path / "run" / "model.pt").read_bytes()
    lines = log.read_text().splitlines()
    log.write_text("\n".join([lines[0], line, *lines[2:], ""]))
    before = log.read_bytes()
    with pytest.raises(SystemExit, match="log.jsonl, line 2 is torn: delete it to go on"):
        start("run", "--resume")
    assert log.read_bytes() == before and (tmp_path / "run" / "model.pt").read_bytes() == model


def test_a_second_run_in_one_folder_is_refused_and_the_first_loses_nothing(
    start, monkeypatch, capsys
):
    whole, said = start("whole"), []

    def start_another(step, batches):
        if step in (2, 5):  # before and after the first checkpoint
            capsys.readouterr()
            with pytest.raises(SystemExit) as refused:
                start("first", *["--resume"] * (step == 5))
            said.append(refused.value.code)
            said.append(capsys.readouterr().err)

    before_each_step(monkeypatch, start_another)
    assert_same_run(whole, start("first"))
    line = f"train.py: another run writes to {whole.parent / 'first'}, expected one of its own"
    assert said[0] == said[2] == line
    assert said[1] == said[3] == ""  # no bar without the lock
    with lock_folder(whole.parent / "first"):
        pass  # a lock ends with its run


def test_evaluating_more_often_changes_no_training_loss(start, monkeypatch):
    rare = log_of(start("rare"))
    monkeypatch.setattr(train, "SAVE_EVERY", 1)
    often = log_of(start("often"))
    assert [line.pop("held out", None) is not None for line in rare] == [False, False, True] * 4
    assert all(line.pop("held out") for line in often)
    assert rare == often


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize(
    "at, resumed, left",
    [
        (2, 0, "nothing was saved"),
        (5, 0, "the checkpoint of step 3 stands"),
        (6, 4, "the checkpoint of step 4 stands"),
        (2, 1, "the checkpoint of step 1 stands"),
    ],
)
def test_a_loss_that_is_not_finite_names_the_step_and_leaves_the_last_good_checkpoint(
    start, tmp_path, monkeypatch, where, at, resumed, left
):
    if resumed:
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            signal_at(patch, resumed)
            start("run")
    backward, steps = train.backward, itertools.count(resumed + 1)

    def broken(measure, model, *arguments):
        losses = backward(measure, model, *arguments)
        if next(steps) == at:
            if where == "loss":
                losses["reading"] = float("nan")
            else:
                model.speller.weight.grad[0, 0] = float("inf")
        return losses

    monkeypatch.setattr(train, "backward", broken)
    with pytest.raises(SystemExit) as stopped:
        start("run", *["--resume"] * (resumed > 0))
    assert f"not finite at step {at}: " in stopped.value.code and left in stopped.value.code
    assert "\n" not in stopped.value.code
    path = tmp_path / "run" / "model.pt"
    assert path.exists() == (left != "nothing was saved")
    if path.exists():
        assert f"of step {info_of(path.parent)['step']} stands" in left
        assert all(weight.isfinite().all() for weight in read_checkpoint(path)["model"].values())


# ------------------------------------------------------------------------------------- signals

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def test_one_ctrl_c_waits_for_an_evaluation_and_a_second_ends_it_at_once(start, monkeypatch):
    handlers, evaluated = [signal.getsignal(number) for number in SIGNALS], []

    def interrupted(times):
        def interrupt(*arguments, **more):
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
            evaluated.append(times)
            return {}

        return interrupt

    for times in (1, 2):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
            patch.setattr(train, "evaluate_briefly", interrupted(times))
            start("run", *["--resume"] * (times == 2))
        assert stopped.value.code == 130
    assert evaluated == [1]  # the second never came to its end
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_a_hangup_that_nohup_ignores_stays_ignored(start, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signal_at(monkeypatch, 2, signal.SIGHUP)
        assert info_of(start("run"))["step"] == 12
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# -------------------------------------------------------------------------- references, questions


@pytest.mark.parametrize("history", ["full", "none"])
def test_references_take_the_same_windows_and_questions_in_as_many_steps(start, history):
    """In whole runs: what the model is given at each step that has language in it."""

    def seen_by(history):
        seen = []

        def look(step, batches):
            rows = {}
            for task, _, batch in batches:
                kind = "language" if task in ("text", *CHUNK_PARTS) else task
                rows.setdefault(kind, []).extend(
                    bytes(row).rstrip(b"\0") for row in batch.text.flatten(1).tolist()
                )
            if "language" in rows:
                rows.pop("reading", None)
                seen.append(rows)

        with pytest.MonkeyPatch.context() as patch:
            before_each_step(patch, look)
            language = start(f"{history}", "--history", history) / "model.pt"
            instruct = ["--history", history, "--stage", "instruct", "--start", str(language)]
            folder = start(f"{history}-instruct", *instruct, "--steps", "6")
        assert info_of(folder)["history"] == history
        return seen

    ours, theirs = seen_by("sketch"), seen_by(history)
    assert len(ours) == len(theirs) and ours == theirs
    assert {"language"} == ours[0].keys() and {"language", *EXAMPLES} == ours[-1].keys()


def test_max_context_is_the_longest_that_was_trained_on_so_far(start, monkeypatch, tmp_path):
    language = start("language", "--steps", "4")
    assert info_of(language)["max_context"] == 0
    seen = []

    def look(step, batches):
        rows = [batch.text.flatten(1) for task, _, batch in batches if task in EXAMPLES]
        seen.append(max(int((row == QUESTION).int().argmax(1).max()) for row in rows))

    for count in range(1, 6):
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            signal_at(patch, 1)
            before_each_step(patch, look)
            instruct = ["--stage", "instruct", "--start", str(language / "model.pt")]
            start("run", *instruct, *["--resume"] * (count > 1))
        assert len(seen) == count and info_of(tmp_path / "run")["max_context"] == max(seen) > 0
    assert seen[-1] < max(seen)  # else a resume may have forgotten it


def own_file(folder, colour="blue") -> str:
    path = folder / "own.jsonl"
    lines = [
        {"context": f"The colour of {i} is {colour}. " * i, "prompt": "Colour?", "response": colour}
        for i in range(1, 9)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_own_examples_take_the_place_of_the_generated_ones(start, tmp_path):
    (tmp_path / "prose").write_bytes(b"words that are in no lines, " * 999)
    prose = ["--data", str(tmp_path / "prose")]
    language = start("language", "--steps", "4", *prose) / "model.pt"
    instruct = ["--stage", "instruct", "--start", str(language), "--steps", "8", *prose]
    with pytest.raises(SystemExit, match="expected text in lines"):
        start("generated", *instruct)
    folder = start("own", *instruct, "--instruct", own_file(tmp_path))
    assert log_of(folder)[-1].keys() >= {"own", "whole", "reading"}
    assert not log_of(folder)[-1].keys() & EXAMPLES.keys()
    assert info_of(folder)["max_context"] % len("The colour of 8 is blue. ") == 0
    with pytest.raises(SystemExit, match="instruct was"):
        start("own", *instruct, "--instruct", own_file(tmp_path, "pink"), "--resume")


def test_weights_that_are_shared_without_optimizers_can_be_trained_on(start, tmp_path):
    model, info = load_checkpoint(start("language", "--steps", "4") / "model.pt")
    save_checkpoint(tmp_path / "shared.pt", model.half(), info | {"max_context": 5000})
    instruct = ["--stage", "instruct", "--start", str(tmp_path / "shared.pt"), "--steps", "3"]
    further, after = load_checkpoint(start("on", *instruct, "--lr", "1e-9") / "model.pt")
    for name, weight in model.float().state_dict().items():
        torch.testing.assert_close(further.state_dict()[name], weight, msg=name)
    assert after["max_context"] == 5000 and after["step"] == after["steps"]  # seen before, still


# ------------------------------------------------------------------------------------ one step


def test_a_steps_gradient_is_the_weighted_sum_of_all_losses(small_file):
    model, corpus = make_model(), load_corpus(str(small_file), 64)
    stage = Stage("all", 1, spelling=1, reading=1 / 4, text=1 / 2, whole=1 / 2, recall=1, context=2)
    settings = Settings(history="sketch", bf16=False, batch_bytes=512)
    tasks = list(sample_batches(stage, model.config, corpus, settings, 0, 0))
    log = train.backward(train.task_losses, model, tasks, settings)
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    total, spelled = 0, {}
    for task, share, batch in tasks:
        text, openings, weights, _ = batch
        full = task in ("text", "spelling")
        nats = loss(model(text, openings, "full" if full else "sketch"), text, weights)
        if task != "text":
            seen = text if task == "spelling" else text[:, :-1]
            spelled[task] = loss(model.predict_patch_bytes(model.compress(seen)), seen)
            nats = spelled[task] if task == "spelling" else nats + 0.5 * spelled[task]
        total += share * nats
    total.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, msg=name)
    assert log.keys() == {"spelling", "reading", "accuracy", "text", "whole", "recall"}
    bits = spelled["reading"].item() / torch.tensor(2.0).log().item()
    assert log["spelling"] == pytest.approx(bits, rel=1e-4)
    text, openings, _, _ = next(batch for task, _, batch in tasks if task == "reading")
    right = model(text, openings)[:, 1].argmax(-1) == text[:, 1]
    assert log["accuracy"] == pytest.approx(right.float().mean().item())


def test_each_step_clips_its_own_gradient_and_sets_both_rates(start, monkeypatch):
    make_optimizers, taken = train.make_optimizers, []

    def watched(model, lr):
        muon, adamw = make_optimizers(model, lr)

        def look(*_):
            norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
            rates = [optimizer.param_groups[0]["lr"] for optimizer in (muon, adamw)]
            taken.append((torch.stack(norms).norm().item(), *rates))

        muon.register_step_pre_hook(look)
        return muon, adamw

    def no_gradient_is_left(measure, model, *arguments, backward=train.backward):
        assert all(p.grad is None for p in model.parameters())
        return backward(measure, model, *arguments)

    monkeypatch.setattr(train, "make_optimizers", watched)
    monkeypatch.setattr(train, "backward", no_gradient_is_left)
    log = log_of(start("run", "--lr", "0.01"))
    assert min(line["grad_norm"] for line in log) > 1  # else there was nothing to clip
    plan = [stage for stage in scale_stages(TABLES["language"], "sketch", 12)] * 3
    for step, (norm, muon, adamw) in enumerate(taken):
        assert norm == pytest.approx(1, rel=1e-4)
        assert muon == pytest.approx(0.01 * train.rate(step, plan))
        assert adamw == pytest.approx(0.6 * muon)
    assert len(taken) == 12


@pytest.mark.parametrize("name, flat_until", [("language", 600), ("instruct", 0)])
def test_the_rate_warms_up_and_falls_at_the_end_or_with_instructions_all_the_way(name, flat_until):
    plan = [TABLES[name][-1]] * 1000
    rates = [train.rate(step, plan) for step in range(1000)]
    assert rates[:3] == [0.05, 0.1, 0.15] and max(rates) <= 1 and 0.02 < rates[-1] < 0.03
    assert all(rate == 1 for rate in rates[20:flat_until])  # none, with instructions
    falling = rates[flat_until + 20 :]
    assert all(a > b for a, b in itertools.pairwise(falling))


def test_a_few_steps_lower_every_loss(start, monkeypatch):
    monkeypatch.setattr(train, "SAVE_EVERY", 1000)
    log = log_of(start("run", "--steps", "50", "--lr", "0.01"))
    for task in ("spelling", "reading", "text", *CHUNK_PARTS):
        losses = [line[task] for line in log if task in line]
        assert losses[0] > 5 and sum(losses[-3:]) / 3 < losses[0] - 1, task


def ten_secrets() -> list[Example]:
    """Contexts that differ in the value alone, at any place in the first of three chunks."""
    facts = [(place, b"%04d" % (place * 1234)) for place in range(1, 8)]
    facts += [(0, value) for value in (b"beef", b"0a1b", b"wxyz")]
    return [
        Example(b"." * at + b"k=%s\n" % value + b"." * (40 - at), ((b"k", value),))
        for at, value in facts
    ]


def test_a_small_model_recalls_ten_values_through_sketches_alone():
    """Each model overfits as far as it can see."""
    examples, reached = ten_secrets(), {}
    for history in ("sketch", "none"):
        torch.manual_seed(0)
        model = Vist2(Config.preset("mini", chunk=16))
        optimizers = train.make_optimizers(model, 5e-3)
        tasks = [("recall", 1.0, question_batch(examples, 16))]
        for _ in range(120):
            settings = Settings(history=history, bf16=False)
            train.backward(train.task_losses, model, tasks, settings)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        reached[history] = evaluate.exact_match(model, examples, history)
        for example in examples:  # what is the likeliest, byte after byte, is what is written
            ((question, response),) = example.turns
            written = generate.answer(model, example.context, question, 9, history=history)
            exact = evaluate.exact_match(model, [example], history)
            assert (written == (response, True)) == exact
    assert reached["sketch"] == 1 and reached["none"] <= 0.1


# ------------------------------------------------------------------------------------ settings


def test_every_option_reaches_the_run(start, monkeypatch):
    monkeypatch.setattr(train, "SAVE_EVERY", 1000)
    plain = log_of(start("plain", "--steps", "4"))
    for i, (option, *value) in enumerate(
        [
            ("--steps", "5"),
            ("--history", "none"),
            ("--cell", "8x4"),
            ("--chunk", "32"),
            ("--batch-bytes", "1024"),
            ("--lr", "0.001"),
            ("--seed", "1"),
            ("--bf16",),
        ]
    ):
        changed = log_of(start(f"run {i}", "--steps", "4", option, *value))
        assert changed != plain, option
        if option == "--bf16":  # as good as, but not the same
            assert [line.keys() for line in changed] == [line.keys() for line in plain]
            for line, exact in zip(changed, plain):
                assert line["spelling"] == pytest.approx(exact["spelling"], rel=0.02)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call")  # to a cache, and looks behind it
def test_compiled_a_run_takes_the_same_steps(start, monkeypatch):
    """Compiled by tracing only, not to machine code, which would take a C++ compiler."""
    compiled, compile = [], torch.compile
    counted = lambda graph, inputs: compiled.append(1) or graph.forward  # noqa: E731
    stage = Stage("all", 2, whole=1)
    monkeypatch.setattr(train, "scale_stages", lambda *_: [stage])  # each shape takes seconds
    monkeypatch.setattr(torch, "compile", lambda work: compile(work, backend=counted))
    plain, traced = (
        log_of(start(name, *flags)) for name, flags in (("plain", []), ("traced", ["--compile"]))
    )
    assert compiled and len(traced) == 2
    for line, reference in zip(traced, plain, strict=True):
        assert line.keys() == reference.keys()
        assert line["whole"] == pytest.approx(reference["whole"], abs=1e-3)


def test_what_is_not_said_comes_from_the_preset_and_the_stage():
    language = Settings(device="cpu").resolve()
    assert (language.steps, language.batch_bytes, language.lr) == (5550, 2048, 5e-3)
    assert language.bf16 is False and language.out == "runs/sketch"
    instruct = Settings(preset="small", history="none", stage="instruct", device="cpu").resolve()
    assert (instruct.steps, instruct.batch_bytes) == (4000, 2**15)
    assert instruct.lr == pytest.approx(0.8 * 3e-3)
    assert (instruct.start, instruct.out) == ("runs/none/model.pt", "runs/none-instruct")
    said = Settings(steps=7, lr=0.1, bf16=True, stage="instruct", device="cpu").resolve()
    assert (said.steps, said.lr, said.bf16) == (7, 0.1, True)


def test_the_whole_command_line_path(start, capsys, monkeypatch):
    monkeypatch.setattr(train, "report", evaluate.report)
    folder = start("run")
    said = capsys.readouterr().out
    for words in ("93,008 parameters", "bytes to train on", "held out", "bits per byte", "minutes"):
        assert words in said
    before = (folder / "model.pt").read_bytes()
    start("run", "--resume")  # nothing left to do: reports again
    again = capsys.readouterr().out
    numbers = [line for line in said.splitlines() if line.startswith("  ")]
    assert len(numbers) == 5 and all(line in again for line in numbers)
    assert (folder / "model.pt").read_bytes() == before
    arguments = ["--checkpoint", str(folder / "model.pt"), "--prompt", "a", "--device", "cpu"]
    assert len(piped(monkeypatch, arguments)) == 512


INSTRUCT = ["--stage", "instruct", "--start"]
BAD_INPUT = [
    (["--data", "missing"], "missing is not there"),
    (["--data", "pipe"], "pipe is no file and no folder"),
    (["--data", "empty"], "too short"),
    (["--data", "short"], "expected 20 files of at least one training window, 64 bytes"),
    (["--data", "forbidden"], "Permission denied: 'forbidden'"),
    (["--chunk", "17"], "chunk 17 does not divide"),
    (["--chunk", "0"], "chunk is 0"),
    (["--chunk", str(2**64)], "chunk is 18446744073709551616, expected a number from 1 to"),
    (["--cell", "3x3"], "cell '3x3' is unknown"),
    (["--preset", "huge"], "--preset is 'huge', expected one of tiny, small"),
    (["--stage", "third"], "--stage is 'third', expected one of language, instruct"),
    (["--history", "prompt"], "--history is 'prompt', expected one of sketch, full, none"),
    (["--device", "tpu"], "device 'tpu' is not there"),
    (["--steps", "0"], "--steps is 0, expected 1 to"),
    (["--steps", str(10**18)], "--steps is 1000000000000000000"),
    (["--batch-bytes", "0"], "--batch-bytes is 0"),
    (["--batch-bytes", str(10**18)], "--batch-bytes is 1000000000000000000"),
    (["--lr", "-1"], "--lr is -1"),
    (["--lr", "nan"], "--lr is nan"),
    (["--lr", "inf"], "--lr is inf"),
    (["--seed", str(2**70)], "--seed is 1180591620717411303424"),
    (["--seed", "-1"], "--seed is -1"),
    (["--out", "a file"], "File exists"),
    (["--resume"], "new run/model.pt is not there, expected a checkpoint"),
    (["--out", "done"], "is there: --resume goes on with it, --out takes another folder"),
    (["--out", "damaged", "--resume"], "damaged or not a checkpoint"),
    (["--out", "nothing", "--resume"], "damaged or not a checkpoint"),
    (["--out", "other code", "--resume"], "does not fit this code"),
    (["--out", "no settings", "--resume"], "preset was None, now it is mini"),
    (["--out", "done", "--resume", "--cell", "8x4"], "cell was (16, 4), now it is (8, 4)"),
    (["--out", "done", "--resume", "--data", "new"], "data was"),
    (["--out", "done", "--resume", "--lr", "0.1"], "lr was 0.005, now it is 0.1"),
    (["--start", "done/model.pt"], "--start and --instruct are for --stage instruct"),
    (["--instruct", "new"], "--start and --instruct are for --stage instruct"),
    ([*INSTRUCT, "missing.pt"], "missing.pt is not there"),
    ([*INSTRUCT, "damaged/model.pt"], "damaged or not a checkpoint"),
    ([*INSTRUCT, "stopped/model.pt"], "was stopped at step 2 of 5"),
    ([*INSTRUCT, "done/model.pt", "--cell", "8x4"], "cell was (16, 4), now it is (8, 4)"),
    ([*INSTRUCT, "done/model.pt", "--history", "full"], "history was sketch, now it is full"),
    ([*INSTRUCT, "done/model.pt", "--instruct", "missing"], "missing is not there"),
    ([*INSTRUCT, "done/model.pt", "--instruct", "new"], "new, line 1: "),
    ([*INSTRUCT, "done/model.pt", "--data", "new"], "expected text in lines"),
]


@pytest.fixture
def bad_files(start, tmp_path, monkeypatch):
    """A folder of everything that BAD_INPUT names, and its content."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").touch()
    (tmp_path / "a file").touch()
    (tmp_path / "short").write_bytes(b"x" * 999)
    (tmp_path / "new").write_bytes(bytes(range(11, 256)) * 200)
    done = (start("done", "--steps", "5") / "model.pt").read_bytes()
    content = read_checkpoint(tmp_path / "done" / "model.pt")
    for name in ("damaged", "nothing", "other code", "no settings", "stopped"):
        (tmp_path / name).mkdir()
    (tmp_path / "damaged" / "model.pt").write_bytes(done[: len(done) // 2])
    (tmp_path / "nothing" / "model.pt").touch()
    torch.save(content | {"model": {}}, tmp_path / "other code" / "model.pt")
    stopped = content | {"info": content["info"] | {"step": 2, "steps": 5}}
    torch.save(stopped, tmp_path / "stopped" / "model.pt")
    del content["settings"]
    torch.save(content, tmp_path / "no settings" / "model.pt")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "forbidden").touch()
    read_bytes = Path.read_bytes

    def guarded(path):
        if path.name == "forbidden":  # a test may run as root, whom no file mode stops
            raise PermissionError(13, "Permission denied", path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    return files


def test_bad_input_gets_one_clear_line_and_nothing_is_lost(start, bad_files, tmp_path, capsys):
    for arguments, said in BAD_INPUT:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            start("new run", "--steps", "5", *arguments)
        line = stopped.value.code
        if line == 2:  # argparse has printed it
            line = capsys.readouterr().err.splitlines()[-1]
        assert said in line and "\n" not in line, arguments
        assert {path: path.read_bytes() for path in bad_files} == bad_files, arguments
        assert not (tmp_path / "new run" / "model.pt").exists(), arguments
