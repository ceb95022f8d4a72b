import json

import pytest

import questions
from data import Text, generator
from questions import Example
from vist2 import START

LINES = [b"line %d: the quick brown fox; %x\n" % (i, i * 7919) for i in range(60)]
TEXT = Text([b"".join(LINES)], 64)


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_what_is_asked_for_stands_where_it_is_said_to_stand(distance):
    for step in range(20):
        sample = lambda: questions.recall_example(TEXT, generator(step), 64, 3, distance)  # noqa: B023
        example = sample()
        assert sample() == example
        [(key, value)] = example.turns
        at = (b"\n" + example.context).index(b"\n" + key + b"=" + value + b"\n")
        own_chunk = len(example.context) // 64
        assert own_chunk == 3 and own_chunk - at // 64 == distance


def test_questions_of_a_step_ask_at_all_distances_and_each_has_one_answer():
    asked_at, mixed, absent, twice = {1: 0, 2: 0, 3: 0}, 0, 0, 0
    for step in range(60):
        example = questions.recall_example(TEXT, generator(step), 64, 3)
        context = b"\n" + example.context
        keys = [key for key, value in example.turns if value != questions.NOT_THERE]
        assert len(set(keys)) == len(keys)
        for key, value in example.turns:
            at = context.rfind(b"\n" + key + b"=")  # the last value of a key counts
            if value == questions.NOT_THERE:
                assert at == -1
                absent += 1
                continue
            assert context[at:].startswith(b"\n" + key + b"=" + value + b"\n")
            twice += context.count(b"\n" + key + b"=") > 1
            asked_at[3 - at // 64] = asked_at.get(3 - at // 64, 0) + 1
        mixed += b"fox" in context
    assert min(asked_at[back] for back in (1, 2, 3)) > 0.7 * max(asked_at.values())
    assert 6 <= mixed <= 25  # one context of four has text between its facts
    asked = sum(asked_at.values())
    assert 0.02 < absent / asked < 0.15 and 0.02 < twice / asked < 0.15


def test_a_context_of_32_chunks_is_full_of_facts():
    for step in range(10):
        plain = questions.recall_example(TEXT, generator(step), 64, 32, style=questions.Style())
        assert len(plain.context) // 64 == 32 and len(plain.turns) == questions.MAX_TURNS
    for chunk in (64, 512):
        assert questions.recall_example(TEXT, generator("far"), chunk, 32, 32).turns


def test_a_context_with_room_for_more_facts_than_there_are_keys_ends():
    few = questions.Style(key_letters=b"k", key_lengths=(1, 2), facts=50)
    example = questions.recall_example(TEXT, generator("long"), 64, 64, style=few)
    assert {key for key, _ in example.turns} == {b"k", b"kk"}


def styles(count):
    return [questions.draw_style(generator("style", step), 64) for step in range(count)]


def test_styles_draw_all_there_is_but_never_what_is_held_back():
    drawn = styles(2000)
    used = b"".join(style.separator + style.end + b"".join(style.values) for style in drawn)
    assert not set(used + b"".join(style.joint for style in drawn)) & set(questions.HELD_BACK)
    q = questions
    assert set(q.MARKS + q.LETTERS + q.CAPITALS + q.DIGITS + bytes(range(128, 256))) <= set(used)
    words = {style.separator for style in drawn if style.separator.strip().isalpha()}
    assert {len(word) for word in words} == {3, 4, 5, 6} and b" is " not in words
    for style in drawn:
        assert style.separator.strip() != style.end.strip() or not style.separator.strip()
        inside = set(style.key_letters + style.joint + b"".join(style.values))
        word = questions.LETTERS if style.separator in words else b""  # has a blank on each side
        assert not inside & set(style.separator + style.end) - set(word)
    for part in ("key_lengths", "value_lengths"):
        assert {getattr(style, part)[1] for style in drawn} == set(range(1, 13))
    assert {1, 2, 3, 4, 32, questions.MAX_FACTS} <= {style.facts for style in drawn}


def test_in_any_style_the_last_value_of_a_key_is_the_answer_and_only_there_it_is_not_there():
    absent = twice = 0
    for step, style in enumerate(styles(300)):
        sample = lambda: questions.recall_example(  # noqa: B023
            TEXT, generator("fact", step), 64, 1 + step % 8, style=style  # noqa: B023
        )
        example = sample()
        assert sample() == example
        lines = example.context.replace(style.end, b"\n" + style.end)
        for key, value in example.turns:
            begins = [b"\n" + style.end + key + style.separator, b"\n" + key + style.separator]
            starts = [(b"\n" + style.end + lines).rfind(begin) for begin in begins]
            if value == questions.NOT_THERE:
                absent += 1
                assert max(starts) == -1
            else:
                begin = begins[starts.index(max(starts))]
                rest = (b"\n" + style.end + lines)[max(starts) + len(begin) :]
                assert rest.startswith(value + b"\n" + style.end)
                twice += example.context.count(key + style.separator) > 1
    assert absent > 30 and twice > 30


def test_a_style_says_how_many_facts_and_how_far_apart():
    for facts, gap in ((1, 0), (3, 0), (1, 900), (3, 900)):
        style, lengths = questions.Style(facts=facts, gap=gap), []
        for step in range(40):
            example = questions.recall_example(TEXT, generator(step), 64, 30, style=style)
            assert 1 <= example.context.count(b"=") <= facts and len(example.turns) <= facts
            lengths.append(len(example.context))
        assert max(lengths) > 1000 if gap else max(lengths) <= 9 * facts


def test_passages_to_repeat_are_different_ones_from_all_over_the_context():
    back = set()
    for step in range(30):
        example = questions.repeat_example(TEXT, generator(step), 64, 3)
        assert questions.repeat_example(TEXT, generator(step), 64, 3) == example
        assert len(example.context) // 64 == 3
        assert 1 < len(example.turns) == len(set(example.turns)) <= questions.MAX_PASSAGES
        for question, response in example.turns:
            line = question.removeprefix(b"Repeat from: ")
            at = example.context.index(line)
            assert example.context.count(line) == 1 and example.context[at - 1 : at] == b"\n"
            assert response == example.context[at : at + 64]
            back.add(3 - at // 64)
    assert back == {1, 2, 3}


@pytest.mark.parametrize(
    "ask, said",
    [
        (
            lambda prose, rng: questions.recall_example(prose, rng, 2, 1, 1),
            "no fact fits 1 chunks of 2",
        ),
        (lambda prose, rng: questions.repeat_example(prose, rng, 64, 3), "expected text in lines"),
        (lambda prose, rng: questions.repeat_example(prose, rng, 64, 30), "no file has the"),
    ],
)
def test_questions_that_a_text_has_no_place_for_are_refused(monkeypatch, ask, said):
    monkeypatch.setattr(questions, "TRIES", 100)
    with pytest.raises(questions.UserError, match=said):
        ask(Text([b"no lines here " * 30], 64), generator("test"))


def test_responses_and_their_stop_count_once_and_nothing_else():
    short = Example(b"ab=1\n", ((b"ab", b"1"), (b"ab", b"22")))
    long = Example(b"x" * 20, ((b"q", b"yes"),))
    text, openings, weights, context = batch = questions.question_batch([short, long], 8)
    assert text.shape == weights.shape == (2, 4, 8) and (openings == START).all()
    rows = [bytes(row.flatten().tolist()) for row in text]
    used = b"ab=1\n\x05ab\x061\x04\x05ab\x0622\x04"
    assert rows[0] == used + questions.FILLER[: 32 - len(used)]
    assert rows[1] == b"x" * 20 + b"\x05q\x06yes\x04" + questions.FILLER[:5]
    counted = [bytes(row[w == 1].tolist()) for row, w in zip(text, weights)]
    assert counted == [b"1\x0422\x04", b"yes\x04"]
    assert context == 20 and batch.skip == 1
    assert questions.question_batch([long], 8).skip == 2  # its answer begins in the third chunk
    assert questions.question_batch([short], 64).text.shape == (1, 2, 64)  # one sketch at least


@pytest.mark.parametrize("role", [0x04, 0x05, 0x06])
def test_roles_cannot_be_forged(role):
    bad = b"ab" + bytes([role])
    for parts in ((bad, ()), (b"", ((bad, b""),)), (b"", ((b"", bad),))):
        with pytest.raises(questions.UserError, match=f"byte 2 of the text is {role:#04x}"):
            Example(*parts)
    forged = Text([bad * 40 + b"a clean line of text\n" * 200], 64)
    for step in range(50):
        drawn = questions.sample_without_roles(forged, 9, generator(step))
        [raw] = forged.sample(1, 9, generator(step)).tolist()
        assert drawn == bytes(raw).replace(bytes([role]), b" ")


# ------------------------------------------------------------------------------- own examples


def line_of(context="c", prompt="p", response="r", **more) -> str:
    return json.dumps({"context": context, "prompt": prompt, "response": response} | more)


def test_own_examples_are_read_shortest_first(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(line_of(context="long " * 9) + "\n" + line_of(response="\u00e9") + "\n")
    short, long = questions.read_examples(str(path), 64)
    assert short == Example(b"c", ((b"p", "\u00e9".encode()),)) and short.length == 7
    assert long.context == b"long " * 9


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ("[" * 100_000, "recursion"),
        ("[1]", "expected an object of context, prompt, response"),
        (line_of(more="x"), "expected an object of context, prompt, response"),
        (line_of(prompt=1), "expected strings"),
        (line_of(response=""), "the response is empty"),
        (line_of(context="\x05"), "byte 0 of the text is 0x05, which marks a role"),
        (line_of(context="x" * 60), "65 bytes in all, expected at most 64"),
        (line_of(context="\ud800"), "surrogates not allowed"),
    ],
)
def test_a_malformed_line_of_own_examples_is_named(tmp_path, line, said):
    path = tmp_path / "own.jsonl"
    path.write_text(f"{line_of()}\n{line}\n")
    with pytest.raises(questions.UserError, match=f"own.jsonl, line 2: .*{said}") as refused:
        questions.read_examples(str(path), 64)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "is empty, expected a JSON object a line"),
        (f"{line_of()}\n{line_of()}\n".encode("utf-16"), ", line 1: 'utf-8' codec can't decode"),
        (f"{line_of()}\n{line_of()}\n".encode("utf-16-le"), ", line 1: Expecting property name"),
        (line_of().encode() + b"\n\xff", ", line 2: 'utf-8' codec can't decode"),
    ],
    ids=["empty", "utf-16", "utf-16 without a mark", "broken"],
)
def test_a_file_that_holds_no_text_is_named(tmp_path, content, said):
    path = tmp_path / "own.jsonl"
    path.write_bytes(content)
    with pytest.raises(questions.UserError, match=f"own.jsonl ?{said}"):
        questions.read_examples(str(path), 64)


def test_examples_of_similar_length_share_a_batch():
    examples = [Example(b"x" * length, ((b"", b"y"),)) for length in range(0, 400, 4)]
    firsts = set()
    for step in range(300):
        batch = questions.sample_of_similar_length(examples, 400, generator(step))
        at = examples.index(batch[0])
        assert batch == examples[at : at + len(batch)]
        assert len(batch) == 1 or batch[-1].length * len(batch) <= 400
        more = examples[at : at + len(batch) + 1]
        assert batch[-1] is examples[-1] or more[-1].length * len(more) > 400
        firsts.add(at)
    assert len(firsts) > 90
