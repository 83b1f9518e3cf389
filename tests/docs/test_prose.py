"""Words, constructions, and lengths that the documentation, the help, and the messages avoid.

CONTRIBUTING.md has the style. Each pattern here is a mistake that pages had more than once. A general
prose linter does not pay: before these were corrected, proselint 0.16 found none of them in six pages,
and reported only false alarms.
"""

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("store", "encode", "learn", "benchmarks")
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
MODULES = [*ROOT.glob("*.py"), *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))]
# Old, roundabout, or British where a plain American word exists.
WORDS = re.compile(
    r"\b(anew|nobody|whoever|learnt|heed(ed|s)?|foretold|mended|in vain|by (day|night)|shall)\b",
    re.IGNORECASE,
)
BRITISH = re.compile(
    r"(behaviour|colour|neighbour|catalogue|[^`_]licence|normalis|optimis"
    r"|\bgrey|\b(after|to)wards\b|\b(whil|among)st\b|\bstart-up\b)"
)
CONSTRUCTIONS = {
    "write 'is not a'": r"(?<!here )\b(is|are) no (?!longer\b|more\b|better\b|\w+er than\b)[a-z]\w*",
    "write 'continue'": r"\bgo(es|ing)? on\b",
    "write 'describe' or 'say'": r"\btells? of\b",
    "write 'full game'": r"(?<!the )(?<!encoded the )\bwhole games?\b",
    "write 'per step'": r"\b(ms|s|kB|bytes|passes|seconds) an? (step|segment|frame|row|run|model)\b",
    "write 'even' or 'including'": r", also (with|in|for|of|those|if|under|where|when|at)\b",
    "write 'video'": r"\bfilms?\b",
    "write 2,400": r"\b\d{1,3} \d{3}\b(?! ?x)",
}
CODE = re.compile(r"^```.*?^```|`[^`]+`|\]\([^)]*\)", re.DOTALL | re.MULTILINE)
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )")
SENTENCE = re.compile(r"(?<=[.!?:;])[*)]*\s+(?=[*(\[`A-Z]|wsa )")
MAX_WORDS = 50


def matches(pattern, name, text):
    return [f"{name}: {match[0]}" for match in re.finditer(pattern, text)]


def prose():
    """Names and texts of pages and notebooks, without code; and of all strings in modules."""
    for path in PAGES:
        yield path.relative_to(ROOT).as_posix(), CODE.sub("", path.read_text())
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "markdown":
                yield path.relative_to(ROOT).as_posix(), CODE.sub("", "".join(cell["source"]))
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                name = f"{path.relative_to(ROOT).as_posix()}:{node.lineno}"
                yield name, CODE.sub("", node.value)


def sentences(page):
    """The sentences of a page's paragraphs and lists, without code and the addresses of links."""
    for block in BLOCK.split(FENCED.sub("\n\n", page.read_text())):
        text = " ".join(block.split())
        if not text.startswith(("|", "#", "![")):
            yield from SENTENCE.split(re.sub(r"\]\([^)]*\)", "]", text))


def test_words_are_plain_and_american():
    odd = []
    for path in [*PAGES, *MODULES]:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        odd += matches(WORDS, name, text)
        if path.suffix == ".md":
            odd += matches(BRITISH, name, CODE.sub("", text))
    assert not odd


def test_constructions_are_those_of_a_native_speaker():
    """In pages, notebooks, help, messages, and docstrings; an f-string is read in its parts."""
    odd = [
        f"{found} ({advice})"
        for name, text in prose()
        for advice, pattern in CONSTRUCTIONS.items()
        for found in matches(pattern, name, text)
    ]
    assert not odd


def test_no_sentence_is_long():
    lengths = {s: len(s.split()) for page in PAGES for s in sentences(page)}
    assert not {s: words for s, words in lengths.items() if words > MAX_WORDS}
