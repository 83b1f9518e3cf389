"""Names of ALE's games, so that `freeway`, `Freeway-v5` and `ALE/Freeway-v5` mean Freeway.

The list exists because importing the emulator takes a second. A test compares it with the emulator.
"""

from __future__ import annotations

import difflib
import re

from wsa.store.common.errors import UsageError

GAMES = """
    Adventure AirRaid Alien Amidar Assault Asterix Asteroids Atlantis Atlantis2 Backgammon
    BankHeist BasicMath BattleZone BeamRider Berzerk Blackjack Bowling Boxing Breakout Carnival
    Casino Centipede ChopperCommand CrazyClimber Crossbow Darkchambers Defender DemonAttack
    DonkeyKong DoubleDunk Earthworld ElevatorAction Enduro Entombed Et FishingDerby FlagCapture
    Freeway Frogger Frostbite Galaxian Gopher Gravitar Hangman HauntedHouse Hero HumanCannonball
    IceHockey Jamesbond JourneyEscape Kaboom Kangaroo KeystoneKapers KingKong Klax Koolaid Krull
    KungFuMaster LaserGates LostLuggage MarioBros MiniatureGolf MontezumaRevenge MrDo MsPacman
    NameThisGame Othello Pacman Phoenix Pitfall Pitfall2 Pong Pooyan PrivateEye Qbert Riverraid
    RoadRunner Robotank Seaquest SirLancelot Skiing Solaris SpaceInvaders SpaceWar StarGunner
    Superman Surround Tennis Tetris TicTacToe3D TimePilot Trondead Turmoil Tutankham UpNDown
    Venture VideoCheckers VideoChess VideoCube VideoPinball WizardOfWor WordZapper YarsRevenge
    Zaxxon
""".split()  # noqa: SIM905  A hundred names in fifteen lines.

_BY_LETTERS = {game.lower(): game for game in GAMES}
_AROUND = re.compile(r"^ALE/|(NoFrameskip|Deterministic)?(-ram)?-v\d+$", re.IGNORECASE)


def spelled(text: str) -> str:
    """Return ALE's spelling of a game typed with any capitals, underscores, prefix or version.

    An unknown name is returned unchanged: the store may have that game, and the lookup reports it
    if not.
    """
    plain = _AROUND.sub("", text.strip())
    return _BY_LETTERS.get(re.sub(r"[\s_-]", "", plain).lower(), text.strip())


def unknown_game(text: str) -> UsageError:
    """Return the error for a name that is not an ALE game's, with similar names."""
    plain = _AROUND.sub("", text.strip()).lower()
    close = difflib.get_close_matches(plain, _BY_LETTERS, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(_BY_LETTERS[name] for name in close)}? " if close else ""
    return UsageError(
        f"{text!r} is not an ALE game. {hint}Games are spelled like Seaquest, MsPacman, or "
        "SpaceInvaders; 'wsa list --games' shows all.",
        kind="unknown-game",
    )
