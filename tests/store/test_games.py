"""Games as they are typed."""

from __future__ import annotations

import pytest

from wsa import cli
from wsa.learn.envs import atari
from wsa.store.common.games import GAMES, spelled


def test_the_list_is_that_of_the_emulator():
    assert sorted(GAMES) == list(atari.games())


@pytest.mark.parametrize(
    "text",
    [
        "Freeway",
        "freeway",
        "FREEWAY",
        "Freeway-v5",
        "ALE/Freeway-v5",
        "FreewayNoFrameskip-v4",
        " freeway ",
    ],
)
def test_a_game_is_known_as_it_is_typed(text):
    assert spelled(text) == "Freeway"


def test_every_game_is_itself_and_as_its_rom_is_called():
    assert [spelled(game) for game in GAMES] == GAMES
    assert all(spelled(rom) == game for game, rom in atari.games().items())


@pytest.mark.parametrize("text", ["Nope", "", "vit-0123456789ab", "../x"])
def test_what_is_no_game_is_left_as_it_is(text):
    assert spelled(text) == text


@pytest.mark.parametrize("verb", ["collect", "learn", "encode", "push", "probe", "bench", "show"])
def test_every_verb_takes_them(verb):
    flags = {"push": ["url", "--game"], "bench": ["--games"], "show": []}.get(verb, ["--game"])
    made = cli.parse(verb, [*flags, "ALE/MsPacman-v5"])
    found = {"bench": "games", "show": "what"}.get(verb, "game")
    assert getattr(made, found) in ("MsPacman", ("MsPacman",))


def test_lists_may_have_spaces():
    assert cli.parse("encode", ["--models", "sr, ae", "--game", "pong, freeway"]).models == (
        "sr",
        "ae",
    )
