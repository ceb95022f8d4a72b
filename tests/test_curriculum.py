from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import curriculum
from curriculum import (
    CHUNK_PARTS,
    CHUNK_TASKS,
    CURRICULUM,
    INSTRUCT,
    Stage,
    chunk_of,
    fit_to_corpus,
    scale_stages,
)
from data import Corpus, Text, load_corpus
from questions import EXAMPLES, QUESTION, Example
from vist2 import READ, Config

CONFIG = Config.preset("mini", chunk=16)  # windows of 64 bytes
QUARTERS = dict.fromkeys(("text", *CHUNK_PARTS), 1 / 4)
PAGES = dict(spelling=1, reading=1 / 4, copy=1 / 4)
EVERYTHING = Stage("all", 1, **PAGES, **QUARTERS, recall=1 / 2, repeat=1 / 2, context=2)


@pytest.fixture
def draw(small_file):
    """draw(stage, ...): the batches of one step, by task, and their shares."""
    corpus = load_corpus(str(small_file), 64)
    corpus.own_examples = [Example(b"x" * i, ((b"y", b"z"),)) for i in range(100)]

    def draw(stage, seed=0, step=0, language_step=0, size=512, config=CONFIG):
        settings = SimpleNamespace(seed=seed, batch_bytes=size)
        tasks = list(
            curriculum.sample_batches(stage, config, corpus, settings, step, language_step)
        )
        return {task: batch for task, _, batch in tasks}, {t: share for t, share, _ in tasks}

    return draw


# ------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    "steps, eyes, language", [(5600, 1300, 4300), (4300, 1300, 3000), (1500, 500, 1000)]
)
def test_spelling_and_reading_keep_their_steps_up_to_a_third_of_a_run(steps, eyes, language):
    table = scale_stages(CURRICULUM, "sketch", steps)
    assert [stage.name for stage in table] == [stage.name for stage in CURRICULUM]
    assert sum(stage.steps for stage in table if not stage.language) == eyes
    assert sum(stage.steps for stage in table if stage.language) == language


@pytest.mark.parametrize("table", [CURRICULUM, INSTRUCT])
@pytest.mark.parametrize("history", ["full", "none"])
def test_references_keep_steps_language_and_questions_and_skip_the_rest(table, history):
    ours = [stage for stage in scale_stages(table, "sketch", 100) if stage.language]
    theirs = scale_stages(table, history, 100)
    for our, their in zip(ours, theirs, strict=True):
        assert (their.name, their.steps, their.context) == (our.name, our.steps, our.context)
        assert their.questions == our.questions
        assert their.language == {"whole": sum(our.language.values())}
        assert their.windows == our.windows and not their.shares(*CHUNK_TASKS)


def test_language_has_a_weight_of_one_in_whole_quarters_and_comes_with_questions():
    for stage in CURRICULUM + INSTRUCT:
        assert all(4 * share == round(4 * share) for share in stage.language.values())
        assert sum(stage.language.values()) == (1 if stage.questions else 0)
        assert stage.windows == 1 or stage.language == {"whole": 1}


def test_stages_are_fitted_to_short_files_and_to_text_without_lines_and_named(capsys):
    prose, roles = b"a line of text\n" * 5, b"\x04\x05" * 2000
    many = Text([b"".join(b"%d is a line\n" % i for i in range(999))], 64)
    [fitted] = fit_to_corpus([CURRICULUM[-1]], CONFIG, many)
    assert fitted == CURRICULUM[-1] and not capsys.readouterr().err
    [short] = fit_to_corpus([CURRICULUM[-1]], CONFIG, Text([prose], 64))
    assert (short.windows, short.context, short.repeat) == (1, 1, 0) and short.recall
    assert "no passages are asked for: no file has" in capsys.readouterr().err
    seldom, rarely = (
        b"".join(b"%d is a long line %s\n" % (i, b"-" * length) for i in range(9))
        for length in (2500, 60_000)
    )
    for rare in (roles, seldom, rarely):  # in most of the shortest contexts no line begins
        [fitted] = fit_to_corpus([CURRICULUM[-1]], CONFIG, Text([rare], 64))
        assert fitted == replace(CURRICULUM[-1], repeat=0)
    narrow = Config.preset("mini", chunk=8)
    [mute] = fit_to_corpus([CURRICULUM[-1]], narrow, many)
    assert not mute.questions and mute.language and mute.reading
    assert "no generated questions are asked: --chunk is 8, they take 16" in capsys.readouterr().err


def test_own_examples_take_the_place_of_the_generated_ones_with_all_of_their_share(draw):
    for stage in INSTRUCT:
        own = stage.with_own_examples()
        assert own.questions == {"own": sum(stage.questions.values())}
        assert (own.language, own.reading) == (stage.language, stage.reading)
        batches, shares = draw(own)
        assert shares["own"] == own.own and ord("z") in batches["own"].text.unique()


def test_chunks_grow_and_always_fill_a_page():
    def grown(**changes):
        return [chunk_of(part, Config(**changes)) for part in CHUNK_PARTS.values()]

    assert grown() == [4, 16, 64]
    assert grown(cell=(4, 4)) == [16, 16, 64] and grown(cell=(16, 8)) == [4, 16, 64]
    assert grown(merge=2) == [8, 16, 64] and grown(merge=4) == [16, 16, 64]
    assert grown(merge=16) == [64, 64, 64] and grown(merge=2, cell=(8, 4)) == [16, 16, 64]
    assert grown(chunk=48) == [4, 12, 48] and grown(chunk=256, cell=(8, 4)) == [16, 64, 256]


# ------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize("stage", CURRICULUM + INSTRUCT, ids=lambda stage: stage.name)
def test_a_step_of_any_row_takes_the_tasks_of_its_row_with_their_shares(draw, stage):
    asked = set()
    for step in range(20):
        shares = draw(stage, step=step)[1]
        questions = {task: shares.pop(task) for task in EXAMPLES if task in shares}
        assert shares == stage.shares(*CHUNK_TASKS, *QUARTERS)
        assert list(questions.values()) == [sum(stage.questions.values())] * bool(stage.questions)
        asked |= questions.keys()
    assert asked == stage.questions.keys()


def test_language_modelling_comes_in_chunks_of_a_sixteenth_a_quarter_and_the_whole(draw):
    batches, _ = draw(CURRICULUM[2], config=Config.preset("mini", chunk=64, chunks=1))
    lengths = {task: batches[task].text.shape[-1] for task in QUARTERS}
    assert lengths == {"text": 64, "sixteenth": 4, "quarter": 16, "whole": 64}


def test_no_task_draws_from_text_that_is_held_out():
    learned = b"".join(b"%d lines are learned\n" % i for i in range(999))
    corpus = Corpus("", "", Text([learned], 64), Text([b"\xfe" * 9999], 64))
    settings = SimpleNamespace(seed=0, batch_bytes=512)
    for _, _, batch in curriculum.sample_batches(EVERYTHING, CONFIG, corpus, settings, 0, 0):
        assert b"\xfe" * 3 not in bytes(batch.text.flatten().tolist())


def test_a_task_takes_its_share_of_the_bytes_of_a_step(draw):
    for size in (2048, 8192):
        batches, shares = draw(EVERYTHING, size=size)
        for task in (*CHUNK_TASKS, *QUARTERS):
            assert batches[task].text.numel() == shares[task] * size, task
    for task in EXAMPLES:  # by their contexts, without the turns
        rows = set()
        for step in range(20):
            batch = draw(Stage("", 1, **{task: 1.0}, context=2), step=step, size=2048)[0][task]
            rows.add(len(batch.text))
        assert rows == {round(2048 / ((chunks + 2) * 16)) for chunks in (1, 2, 4, 8)}


def test_text_is_drawn_by_language_step_all_else_by_step_and_both_by_seed(draw):
    def same(left, right):
        return {
            task
            for task, batch in left.items()
            if task in right and torch.equal(batch.text, right[task].text)
        }

    batches, _ = draw(EVERYTHING, seed=3, step=5, language_step=2)
    language, others = set(QUARTERS), batches.keys() - set(QUARTERS)
    assert others - EXAMPLES.keys() == CHUNK_TASKS.keys() and len(others) == 4
    again = draw(EVERYTHING, seed=3, step=5, language_step=2)[0]
    assert same(batches, again) == batches.keys()
    assert same(batches, draw(EVERYTHING, seed=4, step=5, language_step=2)[0]) == set()
    assert same(batches, draw(EVERYTHING, seed=3, step=6, language_step=2)[0]) == language
    assert same(batches, draw(EVERYTHING, seed=3, step=5, language_step=4)[0]) == others


def test_each_task_has_a_stream_of_its_own(draw):
    """Else a chunk would be spelled and read in one step."""
    batches, _ = draw(EVERYTHING)
    first = [batches[task].text[0, 0].tolist() for task in CHUNK_TASKS]
    assert len(set(map(tuple, first))) == 3


def test_contexts_are_up_to_so_many_chunks_and_in_one_batch_of_three_four_times_as_many(draw):
    stage = Stage("", 1, reading=1 / 8, recall=1.0, context=2)
    lengths, cuts = [], []
    for step in range(320):
        batch = draw(stage, step=step)[0]["recall"]
        first = (batch.text.flatten(1) == QUESTION).int().argmax(1)
        assert batch.longest_context == first.max()
        lengths.append(int(first.max()) // 16)
        cuts.append(batch.text.shape[-1])
    assert set(lengths) == {1, 2, 4, 8} and 58 <= lengths.count(4) + lengths.count(8) <= 102
    assert set(cuts) == {4, 16} and 132 <= cuts.count(4) <= 188  # half are in chunks of a quarter


def test_references_answer_in_whole_chunks_and_never_see_the_opening_of_reading(draw):
    [stage] = scale_stages(INSTRUCT[-1:], "full", 1)
    for step in range(10):
        for batch in draw(stage, step=step)[0].values():
            assert batch.text.shape[-1] == 16 and not (batch.openings == READ).any()
