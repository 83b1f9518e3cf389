"""The status of a store as an HTML page that reloads itself, without scripts or external files.

All text that comes from services and stores is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from wsa.encode.service.heartbeat import HEALTHY
from wsa.encode.service.status import (
    BACKLOG_COLUMNS,
    REFRESH_S,
    SERVICE_COLUMNS,
    Status,
    details,
    failures,
    is_lost,
    name_of,
    show_time,
)
from wsa.store.common import terminal
from wsa.store.common.errors import redact

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1c1e; --faint: #5c6166; --rule: #d6d9dc;
  --paper: #ffffff; --good: #00875f; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaec; --faint: #a3a9af; --rule: #3a3f44;
  --paper: #16181a; --good: #3fbf95; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: 0.5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; border-top: 1px solid var(--rule);
  padding-top: 1rem; }
p, li { max-width: 60rem; margin: 0.35rem 0; } .note { color: var(--faint); font-size: 0.9rem; }
ul { padding-left: 1.2rem; } .good { color: var(--good); } .bad { color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.3rem 1rem 0.3rem 0; border-bottom: 1px solid var(--rule);
  white-space: nowrap; } .number { text-align: right; }
"""


def status_page(status: Status) -> str:
    """Return the page as HTML."""
    note = (
        f"Read at {escape(show_time(status.time))}. The page reloads every {REFRESH_S:.0f} s; "
        '<a href="status.json">status.json</a> has the same for scripts.'
    )
    sections = [
        f'<p class="note">{note}</p>',
        "<h2>Services</h2>",
        *_services(status),
        "<h2>Still to encode</h2>",
        *_backlog(status),
        "<h2>Failures</h2>",
        *_failures(status),
    ]
    return _page(f"Status of {redact(status.url)}", sections)


def error_page(url: str, why: str) -> str:
    """Return the page, as HTML, of a store that cannot be read at the moment."""
    note = f'<p class="note">The page tries again every {REFRESH_S:.0f} s.</p>'
    return _page(f"Status of {redact(url)}", [f'<p class="bad">{_text(redact(why))}</p>', note])


def _page(title: str, sections: Sequence[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="refresh" content="{REFRESH_S:.0f}">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_text(title)}</h1>\n{chr(10).join(sections)}\n</body>\n</html>\n"
    )


def _services(status: Status) -> list[str]:
    if not status.services:
        return ["<p>No service keeps this store encoded. To start one: wsa encode --watch</p>"]
    marks = [
        "good" if stored.heartbeat.state in HEALTHY and not is_lost(stored, status.time) else "bad"
        for stored in status.services
    ]
    lines = [f'<li class="note">{_text(details(stored))}</li>' for stored in status.services]
    return [
        _table(SERVICE_COLUMNS, status.service_rows(), {1: marks}),
        f"<ul>{''.join(lines)}</ul>",
    ]


def _backlog(status: Status) -> list[str]:
    if not status.backlog:
        return ["<p>The store has no models yet, or no frames.</p>"]
    rows = [
        ["all", key, one.objects, one.passes, one.copies] for key, one in status.backlog.items()
    ]
    return [
        _table(BACKLOG_COLUMNS, [*rows, *status.backlog_rows()]),
        '<p class="note">Passes go through the model. Each copy saves a pass.</p>',
    ]


def _failures(status: Status) -> list[str]:
    lines = [
        f"<li>{_text(f'{name_of(stored)}: {line}')}</li>"
        for stored in status.services
        for line in failures(stored)
    ]
    return [f'<ul class="bad">{"".join(lines)}</ul>' if lines else "<p>None now.</p>"]


def _table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    marks: dict[int, list[str]] | None = None,
) -> str:
    """Return a table. `marks` has a CSS class for each cell of some columns."""
    kinds = ["number" if isinstance(cell, (int, float)) else "" for cell in rows[0]]
    head = "".join(
        f'<th class="{kind}">{escape(name)}</th>' for kind, name in zip(kinds, columns, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{kinds[j]} {(marks or {}).get(j, [""] * len(rows))[i]}">{_text(cell)}</td>'
            for j, cell in enumerate(row)
        )
        + "</tr>"
        for i, row in enumerate(rows)
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _text(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if isinstance(value, float) else escape(terminal.plain(str(value)))
