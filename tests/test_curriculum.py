from types import SimpleNamespace

import pytest
import torch

import curriculum
from curriculum import CHUNK_PARTS, CURRICULUM, INSTRUCT, Stage, chunk_of, scale_stages
from data import QUESTION, Corpus, Example, Text, load_corpus
from vist2 import READ, Config

CONFIG = Config.preset("mini", chunk=16)  # windows of 64 bytes
QUARTERS = dict.fromkeys(("text", *CHUNK_PARTS), 1 / 4)
EVERYTHING = Stage("all", 1, 1, 1 / 4, **QUARTERS, recall=1 / 2, repeat=1 / 4, context=2)


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
    "steps, eyes, language", [(5550, 550, 5000), (2100, 550, 1550), (1500, 500, 1000)]
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
        assert not their.spelling and not their.reading


def test_the_shares_of_each_row_add_up_in_whole_quarters():
    assert all(sum(stage.language.values()) in (0, 1) for stage in CURRICULUM)
    assert all(sum(stage.questions.values()) == 1 for stage in INSTRUCT)
    for stage in CURRICULUM + INSTRUCT:
        assert all(4 * share == round(4 * share) for share in stage.language.values())


def test_own_examples_take_the_place_of_the_generated_ones_with_all_of_their_share(draw):
    for stage in INSTRUCT:
        own = stage.with_own_examples()
        assert own.questions == {"own": sum(stage.questions.values())}
        assert (own.language, own.reading) == (stage.language, stage.reading)
        batches, shares = draw(own)
        assert shares["own"] == 1 and ord("z") in batches["own"].text.unique()


def test_chunks_grow_and_always_fill_a_page():
    def grown(**changes):
        return [chunk_of(part, Config(**changes)) for part in CHUNK_PARTS.values()]

    assert grown() == [4, 16, 64]
    assert grown(cell=(4, 4)) == [16, 16, 64] and grown(cell=(16, 8)) == [4, 16, 64]
    assert grown(chunk=48) == [4, 12, 48] and grown(chunk=256, cell=(8, 4)) == [16, 64, 256]


# ------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize("stage", CURRICULUM + INSTRUCT, ids=lambda stage: stage.name)
def test_a_step_of_any_row_takes_the_tasks_of_its_row_with_their_shares(draw, stage):
    shares = draw(stage)[1]
    assert shares == stage.shares("spelling", "reading", *QUARTERS, "recall", "repeat")


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
        for task in ("spelling", "reading", *QUARTERS):
            assert batches[task].text.numel() == shares[task] * size, task
        for task in ("recall", "repeat"):  # contexts, without the turns
            contexts = (batches[task].text.flatten(1) == QUESTION).int().argmax(1).sum().item()
            assert 0.5 < contexts / (shares[task] * size) < 1.5, task


def test_text_is_drawn_by_language_step_all_else_by_step_and_both_by_seed(draw):
    def same(left, right):
        return {
            task
            for task, batch in left.items()
            if batch.text.shape == right[task].text.shape
            and torch.equal(batch.text, right[task].text)
        }

    batches, _ = draw(EVERYTHING, seed=3, step=5, language_step=2)
    language, others = set(QUARTERS), batches.keys() - set(QUARTERS)
    assert others == {"spelling", "reading", "recall", "repeat"}
    again = draw(EVERYTHING, seed=3, step=5, language_step=2)[0]
    assert same(batches, again) == batches.keys()
    assert same(batches, draw(EVERYTHING, seed=4, step=5, language_step=2)[0]) == set()
    assert same(batches, draw(EVERYTHING, seed=3, step=6, language_step=2)[0]) == language
    assert same(batches, draw(EVERYTHING, seed=3, step=5, language_step=4)[0]) == others


def test_each_task_has_a_stream_of_its_own(draw):
    """Else a chunk would be spelled and read in one step, and contexts always equally long."""
    shapes = set()
    for step in range(20):
        batches, _ = draw(EVERYTHING, step=step)
        spelled, read = batches["spelling"].text[0, 0], batches["reading"].text[0, 0]
        assert not torch.equal(spelled, read)
        asked = (batches[task].longest_context // 16 for task in ("recall", "repeat"))
        shapes.add(len(set(asked)))
    assert shapes == {1, 2}


def test_contexts_are_up_to_so_many_chunks_and_in_one_batch_of_four_four_times_as_many(draw):
    stage = Stage("", 1, reading=1 / 8, recall=1, context=2)
    lengths, cuts = [], []
    for step in range(80):
        batch = draw(stage, step=step)[0]["recall"]
        first = (batch.text.flatten(1) == QUESTION).int().argmax(1)
        assert batch.longest_context == first.max()
        lengths.append(int(first.max()) // 16)
        cuts.append(batch.text.shape[-1])
    assert set(lengths) == {1, 2, 4, 8} and 10 <= lengths.count(4) + lengths.count(8) <= 30
    assert set(cuts) == {4, 16} and 28 <= cuts.count(4) <= 52  # half are in chunks of a quarter


def test_references_answer_in_whole_chunks_and_never_see_the_opening_of_reading(draw):
    [stage] = scale_stages(INSTRUCT[-1:], "full", 1)
    for step in range(10):
        for batch in draw(stage, step=step)[0].values():
            assert batch.text.shape[-1] == 16 and not (batch.openings == READ).any()
