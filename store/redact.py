"""Take secrets out of text before it is written down or shown."""

from __future__ import annotations

import os
import re

HIDDEN = "***"

# Up to the last @ of a word, as passwords may hold slashes; then what a query gives its names.
_USER = re.compile(r"(?<=://)\S*@")
_QUERY = re.compile(r"(\w://\S*?)([?#])\S*")
_SECRET = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|ACCOUNT_KEY|SAS_KEY", re.IGNORECASE
)
# A shorter value is no secret worth the name, and would blot out words.
_SHORTEST = 8


def redact(text: str) -> str:
    """The text without user names, passwords and queries of URLs, and without the values of
    environment variables that are named like secrets."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET.search(name):
            text = text.replace(value, HIDDEN)
    return _QUERY.sub(rf"\1\2{HIDDEN}", _USER.sub(f"{HIDDEN}@", text))
