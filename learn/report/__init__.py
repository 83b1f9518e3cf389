"""Reports: text, tables, and figures, as Markdown and as a page that can be mailed."""
