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
TESTS = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
SETTINGS = [*ROOT.glob("*.toml")]
MODULES = [*ROOT.glob("*.py"), *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))]
# Old or roundabout where a plain word exists.
WORDS = re.compile(
    r"\b(anew|nobody|whoever|learnt|heed(ed|s)?|foretold|mended|in vain|by (day|night)|shall)\b",
    re.IGNORECASE,
)
BRITISH = re.compile(
    r"\w*(?:behaviour|colour|neighbour|catalogue|artefact|licenc|grey|centre|analys(?:e|ed|ing)\b"
    r"|(?:cancel|label|level|model|signal|travel)l(?:ed|ing)"
    r"|(?:discret|emphas|final|general|initial|material|maxim|minim|normal|optim|organ|parallel|quant"
    r"|random|real|recogn|serial|special|standard|summar|synchron|token|util|vector|visual)"
    r"is(?:e|ing|ation)"
    r"|\b(?:after|to)wards\b|\b(?:whil|among)st\b|\bstart-up\b)\w*",
    re.IGNORECASE,
)
# British names that a format, an older wsa, or another project chose.
BRITISH_NAMES = {
    "docs/reference/format.md": {"licence"},
    "encode/jobs/run.py": {"CancelledError"},
    "encode/jobs/slurm.py": {"CANCELLED"},
    "encode/live/remote.py": {"CancelledError"},
    "encode/models/custom.py": {"grey"},
    "encode/registration/probe_frames.py": {"colours"},
    "learn/runs/config.py": {"human_normalised", "random_human_normalised", "normaliser"},
    "learn/training/checkpoint.py": {"normalisers"},
    "store/exchange/export.py": {"licence"},
    "store/objects/model_spec.py": {"grey", "licence"},
    "tests/cli/test_learn.py": {"grey"},
    "tests/encode/test_checkpoint.py": {"normalisers"},
    "tests/encode/test_real_slurm.py": {"cancelled"},
    "tests/encode/test_slurm.py": {"CANCELLED"},
    "tests/encode/test_user_model.py": {"grey"},
    "tests/golden/test_golden_runs.py": {"licence"},
    "tests/learn/bench/test_grid.py": {"normaliser"},
    "tests/learn/bench/test_tables.py": {"human_normalised"},
    "tests/learn/report/test_run_page.py": {"normaliser"},
}
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


def test_words_are_plain():
    odd = []
    for path in [*PAGES, *MODULES]:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        odd += matches(WORDS, name, text)
    assert not odd


def test_spelling_is_american():
    """In text, names, and code."""
    texts = {path: path.read_text() for path in (*PAGES, *MODULES, *TESTS, *SETTINGS)}
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        texts[path] = "".join(line for cell in cells for line in cell["source"])
    british = {}
    for path, text in texts.items():
        name = path.relative_to(ROOT).as_posix()
        if found := set(BRITISH.findall(f"{name} {text}")):
            british[name] = found
    assert british == BRITISH_NAMES


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
