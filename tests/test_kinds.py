import json

import pytest
import torch
import torch.nn.functional as F
from conftest import info, make_model

import evaluate
import questions
from cache import Session
from common import WEIGHTS, load_checkpoint, save_checkpoint
from data import Corpus, Text, generator
from experiments import kinds
from experiments.rivals import RIVALS
from experiments.sessions import GistSession

TEXT = Text([b"".join(b"line %d: the quick brown fox\n" % i for i in range(999))], 512)


@pytest.mark.parametrize("name", kinds.TRAINED | kinds.NEVER)
def test_a_kind_asks_for_a_fact_that_stands_there(name):
    style = (kinds.TRAINED | kinds.NEVER)[name]
    for step in range(20):
        example = kinds.one_question(TEXT, generator(name, step), style, 64)
        [(key, value)] = example.turns
        assert key + style.separator + value + style.end in example.context


def test_kinds_that_training_never_draws_are_not_drawn():
    styles = [questions.draw_style(generator(step), 64) for step in range(3000)]
    longest = max(style.key_lengths[1] for style in styles), max(
        style.value_lengths[1] for style in styles
    )
    assert longest == (12, 12) and not any(style.joint == b"-" for style in styles)
    separators = {style.separator for style in styles} & {b" -> ", b" is "}
    assert not separators and not {style.end for style in styles} & {b"|", b"\r\n"}
    assert not any(set(b"".join(style.values)) & set(b"@$%^") for style in styles)


def test_the_last_of_two_values_counts_and_what_is_absent_or_a_needle_is_so():
    for step in range(20):
        twice = kinds.twice_question(TEXT, generator("twice", step), 64)
        [(key, value)] = twice.turns
        facts = [line for line in twice.context.split(b"\n") if line.startswith(key + b"=")]
        assert len(facts) == 2 and facts[1] == key + b"=" + value
        absent = kinds.absent_question(TEXT, generator("absent", step), 64)
        [(key, value)] = absent.turns
        assert value == questions.NOT_THERE and b"\n" + key + b"=" not in b"\n" + absent.context
        needle = kinds.needle_question(TEXT, generator("needle", step), 300)
        [(key, value)] = needle.turns
        assert needle.context.count(key + b"=") == 1
        assert b"\n" + key + b"=" + value + b"\n" in needle.context
        denied = kinds.denied_question(TEXT, generator("denied", step), kinds.FACTS(), 64)
        assert b"\n" + denied.turns[0][0] + b"=" in b"\n" + denied.context


def test_pages_have_as_many_different_bytes_as_they_say():
    pages = dict(kinds.sample_pages(Corpus("", "", TEXT, TEXT), 50, 64))
    assert all(page.shape == (50, 64) for page in pages.values())
    for count in (16, 8, 4, 3, 2, 1):
        name = f"{count} different byte{'s' * (count > 1)}"
        assert max(len(row.unique()) for row in pages[name]) == count
    assert len(pages["1 different byte"].unique()) > 20
    assert set(pages["spaces and tabs"].unique().tolist()) == set(b" \t")


def test_all_tables_are_printed_and_written_as_json(tmp_path, small_file, capsys):
    small_file.write_bytes(5 * small_file.read_bytes())
    save_checkpoint(tmp_path / "model.pt", make_model(), info(max_context=99))
    path = tmp_path / "kinds.json"
    options = ["--count", "2", "--data", str(small_file), "--json", str(path)]
    kinds.main([str(tmp_path / "model.pt"), *options])
    said, warned = capsys.readouterr()
    content = json.loads(path.read_text())
    assert "model.pt was trained on None" in warned  # held-out files that it may have seen
    assert len(content["recall"]) == len(kinds.TRAINED | kinds.NEVER) + 2 + 7
    for name in ("recall", "reading", "language"):
        assert f"| {' | '.join(content[name][0])} |" in said
    assert [row["chunks of past, up to"] for row in content["language"]] == [3, 15]
    assert "Names in held-out text" in said and "names" in content


@pytest.mark.parametrize("rival, session", [("gist", GistSession), ("patches", Session)])
def test_pages_are_read_from_the_cache_that_holds_a_rivals_memory(rival, session, monkeypatch):
    read_with = []
    read = lambda model, page, session: read_with.append(session) or page
    monkeypatch.setattr(kinds, "read_back", read)
    model = make_model(RIVALS[rival].model)
    rows = list(kinds.reading_rows(model, Corpus("", "", TEXT, TEXT), "sketch", 2))
    assert set(read_with) == {session} and rows[0]["bytes right"] == 1


def test_what_has_no_long_windows_is_refused_before_anything_is_asked(
    tmp_path, capsys, monkeypatch
):
    save_checkpoint(tmp_path / "model.pt", make_model(), info())
    (tmp_path / "data").mkdir()
    for name in range(30):
        (tmp_path / "data" / str(name)).write_bytes(b"%d short\n" % name * 20)
    for needles, least in ((kinds.NEEDLES, "1,900"), ((9,), "256")):
        monkeypatch.setattr(kinds, "NEEDLES", needles)
        with pytest.raises(SystemExit, match=f"no held-out file of .*data has {least} bytes"):
            kinds.main([str(tmp_path / "model.pt"), "--data", str(tmp_path / "data")])
        assert capsys.readouterr().out == ""


def test_a_name_counts_by_when_it_stood_last_and_only_if_all_of_its_rest_is_likeliest(monkeypatch):
    text = bytearray(b". " * 128)
    stands = {b"long_name": (0, 19, 34), b"Question": (50, 200), b"shorter": (64, 80)}
    stands |= {b"over_edge": (110, 120), b"inside99": (148, 160), b"longitude": (230, 240)}
    for name, starts in stands.items():
        for start in starts:
            text[start : start + len(name)] = name
    old, new = [(19, 28, 1, False), (34, 43, 1, False)], [(200, 208, 9, True), (240, 249, 1, True)]
    training = b"a long_name"
    assert sorted(kinds.name_places(bytes(text), 16, training)) == old + new
    corpus = Corpus("", "", Text([training], 9), Text([bytes(text)], 64))

    def completed(mistaken: bytes, of="completed") -> dict:
        model, wrong = make_model(), torch.tensor(list(mistaken), dtype=torch.long)
        guess = lambda seen, history: F.one_hot(seen.where(~torch.isin(seen, wrong), 0), 256)
        monkeypatch.setattr(model, "forward", guess)
        rows = kinds.name_rows(model, corpus, "sketch", corpus.held_out.windows(256))
        return {row["last seen, chunks back"]: row[of] for row in rows}

    assert completed(b"") == completed(b"lQ. ") == {"1": 1, "8 to 15": 1}
    assert completed(b"s") == completed(b"s", "new completed") == {"1": 1, "8 to 15": 0}
    assert completed(b"", "names") == {"1": 3, "8 to 15": 1}
    assert completed(b"", "new names") == {"1": 1, "8 to 15": 1}
    assert completed(b"d") == {"1": 2 / 3, "8 to 15": 1}
    assert completed(b"d", "new completed") == {"1": 0, "8 to 15": 1}
    assert completed(b"m") == {"1": 1 / 3, "8 to 15": 1}
    assert completed(b"m", "new completed") == {"1": 1, "8 to 15": 1}


def test_the_weights_that_come_with_the_code_hold_reading_and_recall_by_kind():
    """Floors, well below what docs/results.md has."""
    model, _ = load_checkpoint(WEIGHTS)
    corpus = Corpus("", "", TEXT, TEXT)
    rows = kinds.reading_rows(model, corpus, "sketch", 8)
    read = {row["page"]: row["bytes right"] for row in rows}
    for name in ("256", "16", "8", "4", "1"):
        [found] = [share for page, share in read.items() if page.startswith(f"{name} different")]
        assert found > 0.95, name
    ask = lambda style, step: kinds.one_question(TEXT, generator("floor", step), style, 64)
    for name, floor in (("plain", 0.85), ("3 facts", 0.85), ("values in capitals", 0.6)):
        examples = [ask(kinds.TRAINED[name], step) for step in range(20)]
        assert evaluate.exact_match(model, examples, "sketch") > floor, name
    needles = [kinds.needle_question(TEXT, generator("floor", step), 1000) for step in range(16)]
    assert evaluate.exact_match(model, needles, "sketch") > 0.7  # in lines that are all alike
