import json
import re
from pathlib import Path

import pytest

from common import WEIGHTS, load_checkpoint
from generate import read_back

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readme_is_one_walk_of_at_most_230_lines():
    assert README.count("\n") <= 230


def test_the_line_counts_in_the_readme_are_those_of_the_files():
    stated = dict(re.findall(r"^\| `(\S+)` \| (\d+) \|", README, re.M))
    assert stated == {name: str((ROOT / name).read_text().count("\n")) for name in stated}


def test_every_linked_file_and_every_program_is_there():
    for page in DOCS:
        text = page.read_text()
        assert not re.findall(r"(?<!`)`python [^`\n]*\n", text), f"{page.name}: a command is cut"
        for link, place in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
            target = page.parent / link if link else page
            assert target.exists(), f"{page.name}: {link}"
            assert not place or place in anchors_of(target), f"{page.name}: {link}#{place}"
        for program in re.findall(r"python (\w+\.py)", text):
            assert (ROOT / program).exists(), f"{page.name}: {program}"
        for module in re.findall(r"python -m experiments\.(\w+)", text):
            assert (ROOT / "experiments" / f"{module}.py").exists(), f"{page.name}: {module}"


def anchors_of(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows_of(page: str, head: str) -> list[list[str]]:
    """The cells of the table whose head begins so."""
    [rows] = re.findall(rf"^\| {head}.*\n\|[-|]+\n((?:\|.*\n)+)", page, re.M)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]


def rivals_of(page: str, head: str) -> list[str]:
    """The rivals whose columns a table has behind its head."""
    [names] = re.findall(rf"^\| {head} \| (.*) \|\n", page, re.M)
    return names.replace("`", "").split(" | ")


def json_of(name: str):
    return json.loads((ROOT / f"docs/{name}.json").read_text())


def agrees(cell: str, value: float | str) -> bool:
    """Whether a cell is a value, rounded to the digits that it has, and to three at least where it
    is a whole number but no percentage."""
    if not cell or isinstance(value, str):
        return cell == value
    number = cell.rstrip(" %").replace(",", "")
    digits = len(number.partition(".")[2]) or 3 * ("%" not in cell)
    return abs(float(number) - value) <= 0.5001 / 10**digits


def spans(cell: str, shares: list[float]) -> bool:
    """Whether a cell has the least and the most of the shares, where it says so of all but the
    first, and the first: "0.775, then 0 to 0.020"."""
    apart = ", then " in cell
    expected = [*shares[:apart], *sorted({min(shares[apart:]), max(shares[apart:])})]
    stated = re.split(", then | to ", cell)
    return len(stated) == len(expected) and all(map(agrees, stated, expected))


def test_the_tables_of_kinds_are_what_their_json_has():
    page = (ROOT / "docs/results.md").read_text()
    none, sketch, full = map(json_of, ("kinds-none", "kinds", "kinds-full"))
    tables = {
        "facts": [
            (*one.values(), all_text["so answered"])
            for one, all_text in zip(sketch["recall"], full["recall"], strict=True)
        ],
        "page": [tuple(row.values()) for row in sketch["reading"]],
        "last seen": [
            (*list(rows[0].values())[:2], *(row["completed"] for row in rows))
            + (rows[0]["new names"], *(row["new completed"] for row in rows))
            for rows in zip(none["names"], sketch["names"], full["names"], strict=True)
        ],
    }
    for head, expected in tables.items():
        for cells, values in zip(rows_of(page, head), expected, strict=True):
            for cell, value in zip(cells, values, strict=True):
                assert agrees(cell, value), (head, cells)


@pytest.mark.parametrize(
    "head, file",
    [
        ("1,500 steps", "rivals-short"),
        ("5,600 steps", "rivals-whole"),
        ("at each ratio", "rivals-ratios"),
    ],
)
def test_the_table_of_rivals_is_what_its_json_has(head, file):
    def name_of(row: dict) -> str:
        told = file == "rivals-ratios" and row["rival"] not in ("none", "full")
        return row["rival"] + f", {row['ratio']}x" * told

    page, content = (ROOT / "docs/rivals.md").read_text(), json_of(file)
    runs = {name_of(run): run | {"first chunk": run["by chunk"][0]} for run in content["runs"]}
    recall = {
        name_of(row): [share for name, share in row.items() if name.startswith("recall")]
        for row in content["recall"]
    }
    fields = ("bpb", "first chunk", "position 0", "from 16 on", "gap all %", "gap 0 %", "gap 16+ %")
    fields += ("reading noise", "reading text")
    rows = rows_of(page, head)
    assert {row[0].replace("`", "") for row in rows} == set(runs)
    for name, *cells, stored in rows:
        run = runs[name := name.replace("`", "")]
        gapless = name in ("none", "full")
        values = ["" if gapless and "gap" in f else run.get(f, "") for f in fields]
        assert all(map(agrees, [*cells[:9], stored], [*values, run["KiB"]])), name
        recalled, *far = cells[9:]
        assert spans(recalled, recall[name][:8]), name
        assert len(far) == len(recall[name][8:]) and all(map(agrees, far, recall[name][8:])), name


@pytest.mark.parametrize(
    "head, files",
    [
        ("at 0.005, 0.008", ("rivals-short", "rivals-lr8")),
        ("with questions, without", ("rivals-whole", "rivals-no-questions")),
    ],
)
def test_the_tables_of_two_runs_each_are_what_their_json_has(head, files):
    contents = list(map(json_of, files))
    runs = [{run["rival"]: run for run in content["runs"]} for content in contents]
    recall = [{row["rival"]: row for row in content["recall"]} for content in contents]
    rows = rows_of((ROOT / "docs/rivals.md").read_text(), head)
    assert {row[0].strip("`") for row in rows} == set(runs[1])
    fields = ("bpb", "position 0", "from 16 on", "reading noise")
    for name, *cells, recalled in rows:
        name = name.strip("`")
        for field, cell in zip(fields, cells, strict=True):
            values = [of_run[name].get(field, "") for of_run in runs]
            assert all(map(agrees, cell.split(", ") if cell else ["", ""], values)), (name, field)
        for row, stated in zip(recall, recalled.split("; "), strict=True):
            near = [row[name][f"recall {distance}"] for distance in range(1, 9)]
            assert spans(stated, near), name


def test_the_table_of_the_rivals_costs_is_what_its_json_has():
    runs = {run["rival"]: run for run in json_of("rivals-whole")["runs"]}
    rows = rows_of((ROOT / "docs/rivals.md").read_text(), "cost")
    assert {name.strip("`") for name, *_ in rows} == set(runs)
    for name, *cells in rows:
        run = runs[name.strip("`")]
        fields = ("encoder weights", "encoder MFLOP", "entries")
        assert all(map(agrees, cells, (run[field] for field in fields))), name


def test_the_table_of_what_young_runs_read_is_what_their_logs_had():
    page = (ROOT / "docs/rivals.md").read_text()
    rows = json_of("reading-ratios")["rows"]
    fields = ("reading text", "reading noise")
    known = {(row["rival"], f"{row['ratio']}x"): [row[field] for field in fields] for row in rows}
    told = set()
    for name, *cells in rows_of(page, "step 1,250"):
        for ratio, cell in zip(("2x", "4x", "8x", "16x"), cells, strict=True):
            if cell:
                which, shares = (name.strip("`"), ratio), cell.split(", ")
                assert len(shares) == 2 and all(map(agrees, shares, known[which])), which
                told.add(which)
    assert told == set(known) and len(known) == len(rows)


def test_the_table_of_the_sweep_is_what_its_json_has():
    page = (ROOT / "docs/rivals.md").read_text()
    fields = ("GFLOP at most", "ratio", "width", "layers", "mlp", "MFLOP a byte written", "bpb")
    fields += ("position 0", "from 16 on", "reading text", "recall 8")
    for cells, row in zip(rows_of(page, "GFLOP to read"), json_of("sweep")["rows"], strict=True):
        cells[1] = cells[1].rstrip("x")
        assert all(map(agrees, cells, (row[field] for field in fields))), cells


def test_the_tables_of_equal_cache_of_writing_and_of_controls_are_what_their_json_has():
    page = (ROOT / "docs/results.md").read_text()
    for head, file in {"entries": "budget", "at 2x, 8x": "budget-ratios"}.items():
        for cells, row in zip(rows_of(page, head), json_of(file)["rows"], strict=True):
            assert cells[1:3] == [row.pop("memory"), row.pop("ratio")]
            assert all(map(agrees, cells[:1] + cells[3:], row.values())), cells
    writers = {"writer": "written", "other writer": "written-seeds", "third writer": "written-none"}
    for head, file in writers.items():
        for cells, row in zip(rows_of(page, head), json_of(file)["rows"], strict=True):
            assert all(map(agrees, cells, row.values())), cells  # then comes its info
    rows = rows_of((ROOT / "docs/rivals.md").read_text(), "`sketch`, what it is shown")
    content = json_of("rivals-whole")
    none = next(run for run in content["runs"] if run["rival"] == "none")
    known = {row["control of sketch"]: row for row in content["controls"]} | {"none": none}
    assert len(rows) == len(known)
    for name, *cells in rows:
        row = known["none" if "none" in name else name]
        fields = ("bpb", "position 0", "first 4", "from 16 on")
        assert all(map(agrees, cells, (row[field] for field in fields))), name


def kinds_of(rival: str, seed: int = 0, ratio: int = 4) -> dict[str, float]:
    """What the JSON of a model's kinds has, by the labels of tables."""
    name = f"-{rival}" * ((rival, ratio) != ("sketch", 4)) + f"-{ratio}x" * (ratio != 4)
    kinds = json_of("kinds" + name + f"-seed{seed}" * bool(seed))
    known = {row["page"]: row["bytes right"] for row in kinds["reading"]}
    for row in kinds["recall"]:
        trained = "in" if row["in training"] == "yes" else "never in"
        mean = row["facts"] == "mean of these"
        label = f"mean of kinds, {trained} training" if mean else row["facts"]
        known[label] = row["so answered"]
    for row in kinds["language"]:
        past = f"bits, up to {row['chunks of past, up to']} chunks of past"
        known[past] = row["bits per byte"]
    for row in kinds["names"]:
        known[f"new names, {row['last seen, chunks back']} back"] = row["new completed"]
    return known


@pytest.mark.parametrize("head", ["kinds", "by ratio"])
def test_the_table_of_rivals_kind_by_kind_is_what_their_json_has(head):
    page = (ROOT / "docs/rivals.md").read_text()
    for column, name in enumerate(rivals_of(page, head), start=1):
        rival, _, ratio = name.partition(", ")
        known = kinds_of(rival, ratio=int(ratio.rstrip("x") or 4))
        for cells in rows_of(page, head):
            assert agrees(cells[column], known.get(cells[0], "")), (name, cells)


def test_the_table_of_seeds_is_what_their_json_has():
    """A cell has a value for each seed. Bits and recall of two seeds of `sketch` are in no JSON:
    they stand in results.md too. `full` reads no pages."""
    unread = {"256 different bytes": "", "2 different bytes": ""}
    whole, more = json_of("rivals-whole"), json_of("rivals-seeds")
    fields = {"bits per byte": "bpb", "position 0": "position 0", "from 16 on": "from 16 on"}
    known: dict[tuple[str, int], dict[str, float]] = {("sketch", seed): {} for seed in range(3)}
    for run in whole["runs"] + more["runs"]:
        known[run["rival"], run["seed"]] = {label: run[name] for label, name in fields.items()}
    for row in whole["recall"] + more["recall"]:
        near = [row[f"recall {distance}"] for distance in range(1, 9)]
        shares = {"recall, 1 to 8: the least": min(near), "the most": max(near)}
        shares |= {f"recall, {far}": row[f"recall {far}"] for far in (16, 32)}
        known[row["rival"], row["seed"]] |= shares
    page = (ROOT / "docs/rivals.md").read_text()
    rows, rivals = rows_of(page, "seeds"), rivals_of(page, "seeds 0, 1, 2")
    assert set(rivals) == {"sketch"} | {run["rival"] for run in more["runs"]}
    for column, rival in enumerate(rivals):
        seeds = [seed for name, seed in known if name == rival]
        for seed in seeds:
            values = unread | known[rival, seed] | kinds_of(rival, seed)
            untold = [cells[0] for cells in rows if cells[0] not in values]
            assert len(untold) == (7 if rival == "sketch" and seed else 0), (rival, seed, untold)
            for label, *cells in rows:
                stated = cells[column].split(", ") if cells[column] else [""] * len(seeds)
                right = label in untold or agrees(stated[seed], values[label])
                assert len(stated) == len(seeds) and right, (rival, seed, label)


def test_the_table_of_new_marks_is_what_its_json_has():
    rows = rows_of((ROOT / "docs/rivals.md").read_text(), "place")
    for cells, row in zip(rows, json_of("looks")["rows"], strict=True):
        assert all(map(agrees, cells, row.values())), cells


def test_what_the_readme_shows_in_python_answers(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    [code] = re.findall(r"```python\n(from common.*?)```", README, re.S)
    exec(code, {})
    assert capsys.readouterr().out.endswith("\n(b'9223', True)\n")


def test_the_first_sketches_of_vist2_are_read_without_a_fault():
    text = (ROOT / "vist2.py").read_bytes()[:512]
    assert read_back(load_checkpoint(WEIGHTS)[0], text) == text


def test_no_import_goes_up():
    """The files of the core in the order of reading; experiments import the core, never back."""
    order = re.findall(r"^\| `(\w+)\.py` \| \d+ \|", README, re.M)
    files = {path.stem for path in ROOT.glob("*.py")}
    for floor, name in enumerate(order):
        source = (ROOT / f"{name}.py").read_text()
        imported = set(re.findall(r"^\s*(?:from|import) (\w+)", source, re.M))
        assert not {"experiments", *order[floor:]} & imported, name
        assert imported & files <= set(order), name
