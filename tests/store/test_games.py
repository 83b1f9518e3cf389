"""Names of games are understood as users type them."""

import pytest

from wsa import cli
from wsa.learn.envs import atari
from wsa.store.common.games import GAMES, spelled


def test_the_games_are_those_of_the_emulator_and_roms_name_them_too():
    assert sorted(GAMES) == list(atari.games())
    assert [spelled(game) for game in GAMES] == GAMES
    assert all(spelled(rom) == game for game, rom in atari.games().items())


@pytest.mark.parametrize(
    ("text", "game"),
    [
        *((text, "Freeway") for text in ("freeway", "FREEWAY", " freeway ", "Freeway-v5")),
        *((text, "Freeway") for text in ("ALE/Freeway-v5", "FreewayNoFrameskip-v4")),
        *((text, "Freeway") for text in ("ale/freeway-v5", "Ale/Freeway", "freeway-ram-V4")),
        *((text, text) for text in ("Nope", "", "vit-0123456789ab", "../x")),
    ],
)
def test_known_spellings_become_the_game_and_other_text_stays(text, game):
    assert spelled(text) == game


@pytest.mark.parametrize("verb", ["collect", "learn", "encode", "push", "probe", "bench", "show"])
def test_every_verb_accepts_the_spellings(verb):
    flags = {"push": ["url", "--game"], "bench": ["--games"], "show": []}.get(verb, ["--game"])
    options = cli.parse(verb, [*flags, "ALE/MsPacman-v5"])
    field = {"bench": "games", "show": "what"}.get(verb, "game")
    assert getattr(options, field) in ("MsPacman", ("MsPacman",))


def test_lists_may_contain_spaces():
    assert cli.parse("encode", ["--models", "sr, ae", "--game", "pong, freeway"]).models == (
        "sr",
        "ae",
    )
