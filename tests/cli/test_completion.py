"""`wsa completion`: completion scripts for bash, zsh and fish."""

import shutil
import subprocess

import pytest

from wsa import cli

ASK = """
source ./script
complete_words() { COMPREPLY=(); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _tyro_wsa; }
complete_words wsa coll; echo "${COMPREPLY[@]}"
complete_words wsa collect --protoc; echo "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_bash_completes_verbs_and_options(tmp_path, capsys):
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    ended = subprocess.run(
        ["bash", "-c", ASK], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == ["collect", "--protocol"], ended


@pytest.mark.parametrize("shell", [pytest.param("zsh", marks=pytest.mark.slow), "fish"])
def test_a_script_has_every_verb(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in cli.VERBS)
