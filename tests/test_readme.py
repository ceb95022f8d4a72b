import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readme_is_one_walk_of_at_most_230_lines():
    assert README.count("\n") <= 230


def test_the_line_counts_in_the_readme_are_those_of_the_files():
    stated = dict(re.findall(r"^\| `(\S+)` \| (\d+) \|", README, re.M))
    assert stated == {path.name: str(path.read_text().count("\n")) for path in ROOT.glob("*.py")}


def test_every_linked_file_and_every_program_is_there():
    for page in DOCS:
        text = page.read_text()
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
        for program in re.findall(r"python (\w+\.py)", text):
            assert (ROOT / program).exists(), f"{page.name}: {program}"
        for module in re.findall(r"python -m experiments\.(\w+)", text):
            assert (ROOT / "experiments" / f"{module}.py").exists(), f"{page.name}: {module}"


def rows_of(page: str, head: str) -> list[list[str]]:
    """The cells of the table whose head begins so."""
    [rows] = re.findall(rf"^\| {head}.*\n\|[-|]+\n((?:\|.*\n)+)", page, re.M)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]


def test_the_tables_of_kinds_are_what_their_json_has():
    page = (ROOT / "docs/results.md").read_text()
    names = ("none", "", "full")
    files = [ROOT / f"docs/kinds{'-' * bool(name)}{name}.json" for name in names]
    none, sketch, full = (json.loads(path.read_text()) for path in files)
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
                same = cell == value if isinstance(value, str) else abs(float(cell) - value) < 6e-4
                assert same, (head, cells)


def test_what_the_readme_shows_in_python_answers(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    [code] = re.findall(r"```python\n(from common.*?)```", README, re.S)
    exec(code, {})
    assert capsys.readouterr().out.endswith("\n(b'9223', True)\n")


def test_no_import_goes_up():
    """The files of the core in the order of reading; experiments import the core, never back."""
    order = re.findall(r"^\| `(\w+)\.py` \| \d+ \|", README, re.M)
    for floor, name in enumerate(order):
        source = (ROOT / f"{name}.py").read_text()
        imported = re.findall(r"^\s*(?:from|import) (\w+)", source, re.M)
        assert not {"experiments", *order[floor:]} & set(imported), name
