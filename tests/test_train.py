import json
import signal
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from conftest import make_model, piped

import data
import generate
import train
from data import load_corpus
from vist2 import Config, Vist2, load_checkpoint, loss, read_checkpoint, save_checkpoint


@pytest.fixture
def start(tmp_path, small_file, monkeypatch):
    """Runs train.py on a miniature: start(folder, *arguments)."""
    monkeypatch.setattr(train, "SAVE_EVERY", 3)
    monkeypatch.setattr(train, "QUESTIONS", 8)

    def start(name, *arguments):
        train.main(
            [
                "--preset",
                "mini",
                "--chunk",
                "16",
                "--data",
                str(small_file),
                "--device",
                "cpu",
                "--out",
                str(tmp_path / name),
                *arguments,
            ]
        )
        return tmp_path / name

    return start


def interrupt_at(monkeypatch, step):
    """Ctrl-C in the middle of a step."""
    train_step, steps = train.train_step, []

    def interrupted(*arguments):
        steps.append(1)
        if len(steps) == step:
            signal.raise_signal(signal.SIGINT)
        return train_step(*arguments)

    monkeypatch.setattr(train, "train_step", interrupted)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


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


@pytest.mark.parametrize(
    "steps, eyes, language", [(5550, 550, 5000), (2100, 550, 1550), (1500, 500, 1000)]
)
def test_spelling_and_reading_keep_their_steps_up_to_a_third_of_a_run(steps, eyes, language):
    table = train.stages(train.CURRICULUM, "sketch", steps)
    assert sum(stage.steps for stage in table if not stage.language) == eyes
    assert sum(stage.steps for stage in table if stage.language) == language
    assert sum(stage.steps for stage in train.stages(train.CURRICULUM, "none", steps)) == language


def test_a_run_stopped_in_each_stage_and_resumed_equals_the_unbroken_run(
    start, monkeypatch, capsys
):
    whole, done = start("whole", "--steps", "24"), 0
    table = train.stages(train.CURRICULUM, "sketch", 24)
    ends = list(accumulate(stage.steps for stage in table))
    for stage, end in zip(table, ends, strict=True):
        stop = end - stage.steps // 2  # in the middle; of a single step, within it
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
            interrupt_at(patch, stop - done)
            start("parts", "--steps", "24", *["--resume"] * (done > 0))
        assert stopped.value.code == 130 and "--resume goes on" in capsys.readouterr().err
        assert read_checkpoint(whole.parent / "parts" / "model.pt")["info"]["step"] == stop
        assert stop < ends[-1]
        done = stop
    parts = start("parts", "--steps", "24", "--resume")
    assert_same(read_checkpoint(whole / "model.pt"), read_checkpoint(parts / "model.pt"))
    assert log_of(whole) == log_of(parts)
    assert [line["step"] for line in log_of(parts)] == list(range(1, ends[-1] + 1))


def test_a_killed_run_resumes_from_its_last_checkpoint_without_a_line_twice(start, monkeypatch):
    whole = start("whole")

    class Killed(BaseException):
        pass

    def killed(*arguments, train_step=train.train_step, steps=[]):
        steps.append(1)
        if len(steps) == 6:
            raise Killed
        return train_step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train, "train_step", killed)
        start("parts")
    parts = whole.parent / "parts"
    assert read_checkpoint(parts / "model.pt")["info"]["step"] == 3 and len(log_of(parts)) == 5
    with (parts / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "half a li')
    start("parts", "--resume")
    assert_same(read_checkpoint(whole / "model.pt"), read_checkpoint(parts / "model.pt"))
    assert log_of(whole) == log_of(parts)


def test_evaluating_more_often_changes_no_training_loss(start, monkeypatch):
    rare = start("rare")
    monkeypatch.setattr(train, "SAVE_EVERY", 1)
    often = start("often")
    drop = lambda lines: [{k: v for k, v in line.items() if k != "held out"} for line in lines]
    assert drop(log_of(rare)) == drop(log_of(often))
    assert sum("held out" in line for line in log_of(often)) > sum(
        "held out" in line for line in log_of(rare)
    )


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_names_the_step_and_leaves_the_last_good_checkpoint(
    start, tmp_path, monkeypatch, where
):
    train_step, steps = train.train_step, []

    def broken(compute, model, *arguments):
        losses = train_step(compute, model, *arguments)
        steps.append(1)
        if len(steps) == 5 and where == "loss":
            losses["reading"] = float("nan")
        elif len(steps) == 5:
            next(model.parameters()).grad[0, 0] = float("inf")
        return losses

    monkeypatch.setattr(train, "train_step", broken)
    with pytest.raises(SystemExit, match="not finite at step 5") as stopped:
        start("run")
    assert "\n" not in stopped.value.code
    checkpoint = read_checkpoint(tmp_path / "run" / "model.pt")
    assert checkpoint["info"]["step"] == 3
    assert all(weight.isfinite().all() for weight in checkpoint["model"].values())


@pytest.mark.parametrize("history", ["full", "none"])
def test_references_take_the_same_language_windows_in_as_many_steps(start, history):
    folder = start(history, "--history", history)
    ours = [s for s in train.stages(train.CURRICULUM, "sketch", 12) if s.language]
    theirs = train.stages(train.CURRICULUM, history, 12)
    assert [stage.steps for stage in theirs] == [stage.steps for stage in ours]
    assert len(log_of(folder)) == sum(stage.steps for stage in ours)
    assert read_checkpoint(folder / "model.pt")["info"]["history"] == history
    config = Config.preset("mini", chunk=16)
    corpus = load_corpus(str(folder.parent / "small.txt"), 64)
    for stage, their in zip(ours, theirs, strict=True):
        drawn = [
            torch.cat(
                [
                    batch[0].flatten(1)
                    for task, _, batch in train.batches(each, config, corpus, 512, 0, step, 5)
                    if task != "reading"
                ]
            )
            for each, step in ((stage, 9), (their, 7))
        ]
        assert torch.equal(*drawn)


def test_instructions_stopped_and_resumed_equal_the_unbroken_run(
    start, sources, tmp_path, monkeypatch, capsys
):
    model = start("language", "--data", str(sources), "--steps", "3") / "model.pt"
    instruct = ["--data", str(sources), "--stage", "instruct", "--steps", "8"]
    instruct += ["--start", str(model)]
    before = model.read_bytes()
    whole = start("whole", *instruct)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        interrupt_at(patch, 4)
        start("parts", *instruct)
    capsys.readouterr()
    parts = start("parts", *instruct, "--resume")
    said = capsys.readouterr().out
    assert_same(read_checkpoint(whole / "model.pt"), read_checkpoint(parts / "model.pt"))
    assert log_of(whole) == log_of(parts) and model.read_bytes() == before
    assert {"recall", "docs", "repeat", "whole", "reading"} < log_of(parts)[-1].keys()
    assert "recall 8" in log_of(parts)[2]["held out"]
    assert read_checkpoint(parts / "model.pt")["info"]["far"] == train.INSTRUCT[-1].farthest
    assert "answered exactly" in said and "edit distance" in said
    generate.main(
        ["--checkpoint", str(parts / "model.pt"), "--ask", "What does module1.f1_2 do?"]
        + ["--context", str(sources / "module1.py"), "--lines", "9-12", "--max-new-bytes", "30"]
    )
    assert capsys.readouterr().out


def test_an_example_shorter_than_a_chunk_can_be_trained_on_and_asked(start, tmp_path, capsys):
    line = {"context": "", "prompt": "Hue?", "response": "red"}
    (tmp_path / "own.jsonl").write_text(json.dumps(line))
    (tmp_path / "context").write_bytes(b"")
    model = str(start("language", "--steps", "3") / "model.pt")
    own = ["--instruct", str(tmp_path / "own.jsonl"), "--steps", "3"]
    folder = start("own", "--stage", "instruct", "--start", model, *own)
    capsys.readouterr()
    ask = ["--ask", "Hue?", "--context", str(tmp_path / "context"), "--max-new-bytes", "5"]
    generate.main(["--checkpoint", str(folder / "model.pt"), *ask])
    assert read_checkpoint(folder / "model.pt")["info"]["far"] == 1
    assert capsys.readouterr().out.endswith("\n")


def test_weights_that_are_shared_without_settings_can_be_trained_further(start, tmp_path):
    model, info = load_checkpoint(start("language", "--steps", "3") / "model.pt")
    shared = tmp_path / "shared.pt"
    save_checkpoint(shared, model.half(), info | {"far": 5})
    (tmp_path / "own.jsonl").write_text('{"context": "", "prompt": "Hue?", "response": "red"}')
    own = ["--stage", "instruct", "--instruct", str(tmp_path / "own.jsonl"), "--steps", "2"]
    with pytest.raises(SystemExit, match=r"cell was \(16, 4\), now it is \(8, 4\)"):
        start("other", *own, "--start", str(shared), "--cell", "8x4")
    folder = start("own", *own, "--start", str(shared))
    assert len(log_of(folder)) >= 2
    assert read_checkpoint(folder / "model.pt")["info"]["far"] == 5  # seen before, and still


def test_own_examples_take_the_place_of_the_generated_ones(start, tmp_path, capsys):
    path = tmp_path / "own.jsonl"
    fields = [
        {"context": f"The colour of {i} is blue. " * i, "prompt": "Colour?", "response": "blue"}
        for i in range(1, 9)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in fields))
    model = start("language", "--steps", "3") / "model.pt"
    instruct = ["--stage", "instruct", "--instruct", str(path), "--steps", "8"]
    folder = start("own", *instruct, "--start", str(model))
    assert log_of(folder)[-1].keys() >= {"own", "whole", "reading"}
    assert not log_of(folder)[-1].keys() & data.EXAMPLES.keys()
    assert "answered exactly" not in capsys.readouterr().out
    content = read_checkpoint(folder / "model.pt")  # it knows how long a context it has seen
    assert content["info"]["far"] == len(fields[-1]["context"]) // content["config"]["chunk"] > 1
    path.write_text(path.read_text().replace("blue", "pink"))
    with pytest.raises(SystemExit, match="own was"):
        start("own", *instruct, "--resume")


@pytest.mark.parametrize("history", ["full", "none"])
def test_references_answer_the_same_questions(sources, history):
    corpus, config = load_corpus(str(sources), 64), Config.preset("mini", chunk=16)
    ours, theirs = (train.stages(train.INSTRUCT, seen, 12)[-1] for seen in ("sketch", history))
    drawn = [
        {task: batch[0] for task, _, batch in train.batches(stage, config, corpus, 512, 0, 7, 5)}
        for stage in (ours, theirs)
    ]
    assert ours.instructions == theirs.instructions and len(ours.instructions) == 3
    for task in ours.instructions:  # theirs in whole chunks
        our, their = (side[task].flatten(1) for side in drawn)
        length = min(our.shape[1], their.shape[1])
        assert torch.equal(our[:, :length], their[:, :length])
        assert not our[:, length:].any() and not their[:, length:].any()
        assert drawn[1][task].shape[-1] == 16


def test_each_row_of_the_curriculum_adds_up():
    assert all(sum(stage.language.values()) in (0, 1) for stage in train.CURRICULUM)
    for stage in train.CURRICULUM + train.INSTRUCT:
        assert all(4 * share == round(4 * share) for share in stage.language.values())


@pytest.mark.parametrize("name, flat_until", [("language", 60), ("instruct", 0)])
def test_the_rate_warms_up_and_falls_at_the_end_or_with_instructions_all_the_way(name, flat_until):
    plan = [train.TABLES[name][-1]] * 1000
    rates = [train.rate(step, plan) for step in range(1000)]
    assert rates[:3] == [0.05, 0.1, 0.15] and max(rates) <= 1 and 0.02 < rates[-1] < 0.03
    assert all(rate == 1 for rate in rates[20 : 10 * flat_until])  # none, with instructions
    assert all(a > b for a, b in zip(rates[10 * flat_until + 20 :], rates[10 * flat_until + 21 :]))


def test_contexts_are_1_to_far_chunks_and_now_and_then_four_times_as_many(sources):
    corpus, config = load_corpus(str(sources), 64), Config.preset("mini", chunk=16)
    stage, lengths, cuts = train.Stage("recall", 1, reading=1 / 8, recall=1, far=2), set(), []
    for step in range(60):
        (_, _, (text, *_)), _ = train.batches(stage, config, corpus, 256, 0, step, 0)
        at = (text[0] == data.QUESTION).flatten().nonzero()[0]
        lengths.add(int(at) // 16)
        cuts.append(text.shape[-1])
    assert lengths == {1, 2, 4, 8} and stage.farthest == 8
    assert set(cuts) == {4, 16} and 20 <= cuts.count(4) <= 40  # half are in chunks of a quarter


def test_chunks_grow_and_always_fill_a_page():
    grown = lambda **changes: [
        train.chunk_of(part, Config(**changes)) for part in train.PARTS.values()
    ]
    assert grown() == [4, 16, 64]
    assert grown(cell=(4, 4)) == [16, 16, 64] and grown(cell=(16, 8)) == [4, 16, 64]
    assert grown(chunk=48) == [4, 12, 48] and grown(chunk=256, cell=(8, 4)) == [16, 64, 256]


def test_muon_takes_the_matrices_inside_blocks_and_adamw_the_rest():
    model = make_model()
    muon, adamw = (
        {id(p) for p in o.param_groups[0]["params"]} for o in train.make_optimizers(model, 1e-3)
    )
    for name, parameter in model.named_parameters():
        assert (id(parameter) in muon) == ("blocks" in name and parameter.ndim == 2)
        assert (id(parameter) in muon) != (id(parameter) in adamw)


def test_muon_is_torchs_own_but_in_float32():
    """That one computes in bfloat16, which is 1 % off."""
    begun = [torch.randn(shape) for shape in ((24, 96), (96, 24), (32, 32))]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in begun] for _ in range(2))
    optimizers = (
        train.Muon(ours, lr=0.01),
        torch.optim.Muon(theirs, lr=0.01, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for start, p, q in zip(begun, ours, theirs):
        assert (p - q).norm() < 0.03 * (q - start).norm()


def test_a_few_steps_lower_every_loss(start):
    log = log_of(start("run", "--steps", "60"))
    for task in ("spelling", "reading", "text", *train.PARTS):
        losses = [line[task] for line in log if task in line]
        assert losses[0] > 5 and sum(losses[-3:]) / 3 < losses[0] - 1, task


def test_a_steps_gradient_is_the_weighted_sum_of_all_losses(small_file):
    model, corpus = make_model(), load_corpus(str(small_file), 64)
    stage = train.Stage("all", 1, spelling=1, reading=1 / 4, text=1 / 2, whole=1 / 2)
    tasks = list(train.batches(stage, model.config, corpus, 512, 0, 0, 0))
    settings = {"bf16": False, "history": "sketch"}
    log = train.train_step(train.task_losses, model, tasks, settings, torch.device("cpu"))
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    total, spelled = 0, {}
    for task, share, (chunks, openings, weights) in tasks:
        full = task in ("text", "spelling")
        nats = loss(model(chunks, openings, "full" if full else "sketch"), chunks, weights)
        if task != "text":
            seen = chunks if task == "spelling" else chunks[:, :-1]
            spelled[task] = loss(model.spell(model.remember(seen)), seen)
            nats = spelled[task] if task == "spelling" else nats + train.SPELLING * spelled[task]
        total += share * nats
    total.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, msg=name)
    assert log.keys() == {"spelling", "reading", "accuracy", "text", "whole"}
    bits = spelled["reading"].item() / torch.tensor(2.0).log().item()
    assert log["spelling"] == pytest.approx(bits, rel=1e-4)
    chunks, openings, _ = next(batch for task, _, batch in tasks if task == "reading")
    right = model(chunks, openings)[:, 1].argmax(-1) == chunks[:, 1]
    assert log["accuracy"] == pytest.approx(right.float().mean().item())


def ten_secrets() -> list[data.Example]:
    """Contexts that differ in the value alone, at any place in the first of three chunks."""
    return [
        data.Example(
            b"." * place + b"k=%04d\n" % (place * 1234) + b"." * (40 - place),
            ((b"k", b"%04d" % (place * 1234)),),
        )
        for place in range(1, 8)
    ] + [
        data.Example(b"k=%s\n" % value + b"." * 40, ((b"k", value),))
        for value in (b"beef", b"0a1b", b"wxyz")
    ]


def test_a_small_model_recalls_ten_values_through_sketches_alone():
    """Each model overfits as far as it can see."""
    examples, reached = ten_secrets(), {}
    for history in ("sketch", "none"):
        torch.manual_seed(0)
        model = Vist2(Config.preset("mini", chunk=16))
        optimizers = train.make_optimizers(model, 5e-3)
        batch = data.instruct_batch(examples, 16)
        settings = {"bf16": False, "history": history}
        for _ in range(150):
            tasks = [("recall", 1.0, batch)]
            train.train_step(train.task_losses, model, tasks, settings, torch.device("cpu"))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        reached[history] = train.exact_match(model, examples, history)
        for example in examples:  # what is the likeliest, byte after byte, is what is written
            ((question, response),) = example.turns
            written = generate.answer(model, example.context, question, 9, history=history)
            assert (written == (response, True)) == train.exact_match(model, [example], history)
    assert reached["sketch"] == 1 and reached["none"] <= 0.1


@pytest.mark.parametrize(
    "a, b, distance",
    [
        (b"", b"", 0),
        (b"same", b"same", 0),
        (b"", b"abc", 1),
        (b"kitten", b"sitting", 3 / 7),
        (b"abcd", b"bcd", 1 / 4),
    ],
)
def test_edit_distance(a, b, distance):
    assert train.edit_distance(a, b) == train.edit_distance(b, a) == pytest.approx(distance)


def test_evaluation_is_by_hand_the_mean_over_held_out_bytes(small_file):
    model, corpus = make_model(), load_corpus(str(small_file), 64)
    result = train.evaluate(model, corpus, "none")
    text = corpus.held_out.windows().view(-1, 4, 16)
    bits = (
        -model(text, history="none").log_softmax(-1).gather(-1, text[..., None])[..., 0]
        / torch.tensor(2.0).log()
    )
    assert result["bpb"] == pytest.approx(bits.mean().item(), rel=1e-5)
    assert result["position 0"] == pytest.approx(bits[:, 2:, 0].mean().item(), rel=1e-5)
    assert result["first 4"] == pytest.approx(bits[:, 2:, :4].mean().item(), rel=1e-5)


def test_bf16_and_compile_run_and_stay_close(start, monkeypatch):
    """What a GPU run uses, as far as a CPU has it; compiled by tracing only, not to machine code,
    which would take a C++ compiler."""
    compiled, compile = [], torch.compile
    counted = lambda graph, inputs: compiled.append(1) or graph.forward
    stage = train.Stage("all", 3, reading=1, whole=1)
    monkeypatch.setattr(train, "stages", lambda *_: [stage])  # each shape takes seconds to trace
    monkeypatch.setattr(torch, "compile", lambda work: compile(work, backend=counted))
    rough, exact = (
        log_of(start(name, "--steps", "3", *flags))
        for name, flags in (("rough", ["--bf16", "--compile"]), ("exact", []))
    )
    assert compiled and len(rough) == 3
    for line, reference in zip(rough, exact, strict=True):
        assert line.keys() == reference.keys()
        for task in ("spelling", "reading", "whole"):
            assert line[task] == pytest.approx(reference[task], rel=0.02)


def test_batches_go_to_a_gpu_through_pinned_memory(monkeypatch):
    """The calls, not the memory: a machine without CUDA has none to pin."""
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: calls.append("pin") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda *a, **more: calls.append((a[1].type, more)))
    train.to_device([torch.arange(3)], torch.device("cuda"))
    train.to_device([torch.arange(3)], torch.device("mps"))
    assert calls == ["pin", ("cuda", {"non_blocking": True}), ("mps", {})]


def test_the_whole_command_line_path(start, capsys, monkeypatch, small_file):
    folder = start("run")
    said = capsys.readouterr().out
    for word in (
        "bits per byte",
        "position 0",
        "reading noise",
        "read from it",
        "continued",
        "minutes",
    ):
        assert word in said
    start("run", "--resume")  # nothing left to do: reports again
    assert "bits per byte" in capsys.readouterr().out
    checkpoint = ["--checkpoint", str(folder / "model.pt")]
    written = piped(
        monkeypatch, [*checkpoint, "--prompt", "line 1", "--max-new-bytes", "40", "--stats"]
    )
    assert len(written) == 40 and "22 entries" in capsys.readouterr().err
    generate.main([*checkpoint, "--read", str(small_file)])
    assert "bytes right" in capsys.readouterr().out


BAD_INPUT = [
    (["--data", "missing"], "missing is not there"),
    (["--data", "empty"], "too short"),
    (["--data", "short"], "expected 20 files of at least one training window, 64 bytes"),
    (["--data", "forbidden"], "Permission denied: 'forbidden'"),
    (["--chunk", "17"], "chunk 17 does not divide"),
    (["--preset", "huge"], "preset 'huge'"),
    (["--preset", "8B"], "preset '8B' cannot be trained here, expected one of tiny, small"),
    (["--device", "tpu"], "device 'tpu' is not there"),
    (["--steps", "-1"], "--steps is -1"),
    (["--steps", "0"], "--steps is 0"),
    (["--lr", "-1"], "--lr is -1"),
    (["--lr", "nan"], "--lr is nan"),
    (["--batch-bytes", "0"], "--batch-bytes is 0"),
    (["--seed", str(2**70)], "--seed is 11"),
    (["--out", "a file"], "File exists"),
    (["--resume"], "expected a checkpoint"),
    (["--out", "done"], "is there already"),
    (["--out", "damaged", "--resume"], "damaged or not a checkpoint"),
    (["--out", "nothing", "--resume"], "damaged or not a checkpoint"),
    (["--out", "other code", "--resume"], "does not fit this code"),
    (["--out", "no settings", "--resume"], "chunk was None, now it is 16"),
    (["--out", "done", "--resume", "--cell", "8x4"], "cell was (16, 4), now it is (8, 4)"),
    (["--out", "done", "--resume", "--data", "new"], "data was"),
    (["--out", "done", "--resume", "--lr", "0.1"], "lr was 0.005, now it is 0.1"),
    (["--history", "some"], "invalid choice: 'some'"),
    (["--start", "done/model.pt"], "are for --stage instruct"),
    (["--instruct", "new"], "are for --stage instruct"),
    (["--stage", "instruct", "--start", "missing.pt"], "missing.pt is not there"),
    (["--stage", "instruct", "--start", "damaged/model.pt"], "damaged or not a checkpoint"),
    (["--stage", "instruct", "--start", "stopped/model.pt"], "was stopped at step 2 of 5"),
    (["--stage", "instruct", "--start", "done/model.pt", "--cell", "8x4"], "cell was (16, 4)"),
    (
        ["--stage", "instruct", "--start", "done/model.pt", "--instruct", "missing"],
        "missing is not",
    ),
    (["--stage", "instruct", "--start", "done/model.pt", "--instruct", "new"], "new, line 1: "),
    (["--stage", "instruct", "--start", "done/model.pt"], "expected Python sources"),
    (["--cell", "3x3"], "cell '3x3' is unknown"),
]


def test_bad_input_gets_one_clear_line_and_nothing_is_lost(start, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, content in (
        ("empty", b""),
        ("a file", b""),
        ("short", b"x" * 999),
        ("forbidden", b"x"),
    ):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "new").write_bytes(bytes(range(256)) * 20)
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
    read_bytes = Path.read_bytes

    def guarded(path):
        if path.name == "forbidden":  # a test may run as root, whom no file mode stops
            raise PermissionError(13, "Permission denied", path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    everything = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "forbidden"]
    before = {path: read_bytes(path) for path in everything}
    for arguments, said in BAD_INPUT:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            start("new run", "--steps", "5", *arguments)
        if stopped.value.code == 2:  # argparse has printed it
            assert said in capsys.readouterr().err
        else:
            assert said in stopped.value.code and "\n" not in stopped.value.code
        assert {path: read_bytes(path) for path in before} == before
        assert not (tmp_path / "new run" / "model.pt").exists()


def test_an_early_end_says_truly_whether_anything_was_saved(start, monkeypatch, capsys):
    def broken(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "load_corpus", broken)
    with pytest.raises(SystemExit):
        start("run")
    said = capsys.readouterr().err
    assert "no checkpoint had been saved yet" in said and "--resume" not in said
