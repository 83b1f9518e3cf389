"""Sections as one self-contained page: no scripts, and no fonts or pictures from elsewhere.

Figures are inline SVG in the page's colors, so they follow the reader's choice of light or dark.
All text is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from wsa.learn.report.document import Figure, Film, Gallery, Section, Table, Text

STYLE = """
:root { color-scheme: light dark; --ink: #1a1c1e; --faint: #5c6166; --rule: #d6d9dc;
  --paper: #ffffff; --raised: #f5f6f7; --s0: #0072b2; --s1: #d55e00; --s2: #00875f; --s3: #b4558f;
  --s4: #b87900; --s5: #2f8fc4; --s6: #1a1c1e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaec; --faint: #a3a9af; --rule: #3a3f44;
  --paper: #16181a; --raised: #1f2225; --s0: #56a8e0; --s1: #f08a4b; --s2: #3fbf95; --s3: #e09ac6;
  --s4: #e6b04a; --s5: #8cc9ee; --s6: #e8eaec; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; margin: 0.5rem 0; } h2 { font-size: 1.3rem; margin: 2.5rem 0 0.5rem;
  border-top: 1px solid var(--rule); padding-top: 1rem; }
h3, figcaption b { font-size: 1rem; font-weight: 600; margin: 1.5rem 0 0.25rem; }
p { max-width: 46rem; margin: 0.5rem 0; } a { color: var(--s0); }
.note, dt { color: var(--faint); font-size: 0.9rem; } nav a { margin-right: 1rem; }
.wide { overflow-x: auto; margin: 0.5rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.3rem 0.9rem 0.3rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; white-space: nowrap; }
td.words { white-space: normal; min-width: 14rem; }
.figures { display: flex; flex-wrap: wrap; gap: 1.5rem; margin: 1rem 0; align-items: flex-start; }
figure { margin: 0; flex: 0 1 30rem; min-width: 0; max-width: 100%; }
figure svg, figure video { width: 100%; height: auto; display: block; stroke-linejoin: round; }
.gallery { display: grid; gap: 0.75rem; margin: 0.5rem 0 1rem;
  grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); }
.gallery figcaption { color: var(--faint); font-size: 0.8rem; line-height: 1.3; }
.gallery img { width: 100%; height: auto; display: block; image-rendering: pixelated; }
dl { background: var(--raised); padding: 0.75rem 1rem; border-radius: 6px; font-size: 0.9rem; }
dd { margin: 0 0 0.5rem; }
"""

LONG = 40  # Cells longer than this are words, and may wrap.


def page(title: str, sections: Sequence[Section]) -> str:
    """Make the page, as HTML."""
    links = "".join(f'<a href="#{escape(s.name)}">{escape(s.title)}</a>' for s in sections)
    body = "\n".join(map(_section, sections))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing is fetched, whatever a cell contains; not even the icon that browsers request.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:; media-src data:\">\n"
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<nav>{links}</nav>\n{body}\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    lines = [f'<section id="{escape(section.name)}">', f"<h2>{escape(section.title)}</h2>"]
    drawn: list[str] = []
    for part in section.parts:
        if isinstance(part, Figure):
            drawn.append(_figure(part))
            continue
        lines += _row(drawn)
        drawn = []
        match part:
            case Table():
                lines.append(_table(part))
            case Film():
                lines.append(_film(part))
            case Gallery():
                lines.append(_gallery(part))
            case Text():
                lines.append(f"<p>{escape(part.text)}</p>")
    lines += _row(drawn)
    facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in section.facts.items())
    if facts:
        lines.append(f"<h3>How this was made</h3><dl>{facts}</dl>")
    lines.append("</section>")
    return "\n".join(lines)


def _row(figures: Sequence[str]) -> list[str]:
    """Place consecutive figures side by side if there is room."""
    return [f'<div class="figures">{"".join(figures)}</div>'] if figures else []


def _figure(figure: Figure) -> str:
    note = f'<div class="note">{escape(figure.note)}</div>' if figure.note else ""
    caption = f"<figcaption><b>{escape(figure.title)}</b>{note}</figcaption>"
    return f'<figure role="img" aria-label="{escape(figure.title)}">{caption}{figure.svg}</figure>'


def _film(film: Film) -> str:
    data = base64.b64encode(film.mp4).decode()
    return (
        f"<figure><figcaption><b>{escape(film.title)}</b></figcaption>"
        f'<video controls src="data:video/mp4;base64,{data}"></video></figure>'
    )


def _gallery(part: Gallery) -> str:
    note = f'<p class="note">{escape(part.note)}</p>' if part.note else ""
    pictures = "".join(
        f'<figure><img alt="{escape(picture.caption)}" src="data:image/png;base64,'
        f'{base64.b64encode(picture.png).decode()}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
        for picture in part.pictures
    )
    return f'<h3>{escape(part.title)}</h3>{note}<div class="gallery">{pictures}</div>'


def _table(part: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in part.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in part.rows)
    note = f'<p class="note">{escape(part.note)}</p>' if part.note else ""
    return (
        f"<h3>{escape(part.title)}</h3>{note}"
        f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'
    )


def _cell(text: str) -> str:
    words = ' class="words"' if len(text) > LONG else ""
    return f"<td{words}>{escape(text)}</td>"
