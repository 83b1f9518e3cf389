"""Words that the documentation, the help, and the messages avoid; CONTRIBUTING.md has the style."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Old, roundabout, or British where a plain American word exists.
WORDS = re.compile(
    r"\b(anew|nobody|whoever|learnt|heed(ed|s)?|foretold|mended|in vain|by (day|night)|shall)\b",
    re.IGNORECASE,
)
BRITISH = re.compile(r"(behaviour|colour|neighbour|catalogue|[^`_]licence|normalis|optimis)")
CODE = re.compile(r"^```.*?^```|`[^`]+`|\]\([^)]*\)", re.DOTALL | re.MULTILINE)


def matches(pattern, name, text):
    return [f"{name}: {match[0]}" for match in pattern.finditer(text)]


def test_words_are_plain_and_american():
    rooms = ("store", "encode", "learn", "docs", "benchmarks")
    files = [*ROOT.glob("*.md"), *ROOT.glob("*.py"), *(ROOT / "docs").rglob("*.md")]
    files += [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    odd = []
    for path in files:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        odd += matches(WORDS, name, text)
        if path.suffix == ".md":
            odd += matches(BRITISH, name, CODE.sub("", text))
    assert not odd
