"""P22: commands from nothing to a trained run work on a bucket, and write no secret anywhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import command_kit
import pytest

from wsa.store.common.errors import redact
from wsa.store.objects.root import open_store
from wsa.store.objects.writer import command_line

COLLECT = (
    "collect", "--game", "Breakout", "--steps", "40", "--num-envs", "2", "--segment-steps", "20",
)  # fmt: skip
ENCODE = ("encode", "--models", "timm:test_resnet.r160_in1k:random", "--output", "pooled")
LEARN = ("learn", "--game", "Breakout", "--updates", "1", "--run-dir", "run")
TOKEN = "a-token/that+nobody=may-see"


@pytest.fixture
def outputs():
    """Everything that commands printed."""
    return []


@pytest.fixture
def wsa(outputs, environment, tmp_path, url):
    """Run wsa in this process, in an empty folder."""
    environment.chdir(tmp_path)
    environment.setenv("WSA_STORE", url)
    environment.setenv("WSA_CACHE", str(tmp_path / "cache"))
    environment.setenv("AWS_SESSION_TOKEN", TOKEN)

    def command(*arguments, expected=0):
        environment.setattr(sys, "argv", ["wsa", *arguments])
        code, out, err = command_kit.run(*arguments)
        outputs.append(out + err)
        assert code == expected, outputs[-1]
        return err if code else out

    return command


def bytes_of(s3, url):
    """Everything in the bucket, with names and metadata."""
    name = url.split("/")[2]
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=name):
        for entry in page["Contents"]:
            found = s3.get_object(Bucket=name, Key=entry["Key"])
            yield entry["Key"], found["Body"].read()
            yield entry["Key"] + " metadata", repr((entry["Key"], found["Metadata"])).encode()


def test_a_run_on_a_bucket_writes_no_secret(wsa, outputs, s3, url, tmp_path, environment):
    secrets = [os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_ACCESS_KEY_ID"], TOKEN, "hush"]
    hostile = f"s3://me:hush@{url[5:]}"
    for verb in (*COLLECT, "--store", hostile), ("verify", "--store", hostile):
        assert "in the environment" in wsa(*verb, expected=2)
    wsa("collect", "--stor", hostile, expected=2)
    assert json.loads(wsa(*COLLECT, "--json"))["segments"] == 2
    # Other URLs are recorded with the command, without their passwords.
    environment.setattr(sys, "argv", ["wsa", *ENCODE])
    inproc = ("--scheduler", "https://me:hush@host/x?sig=hush", "--scheduler", "inproc")
    wsa(*ENCODE, *inproc)
    assert json.loads(wsa(*ENCODE, "--scheduler", "inproc", "--json"))["objects"] == 0
    wsa(*LEARN)
    listed = json.loads(wsa("list", "--json"))["Breakout"]
    assert (listed["segments"], listed["steps"]) == (2, 40)
    assert "Breakout" in wsa("show", "Breakout")
    report = json.loads(wsa("verify", "--json"))
    assert (report["damage"], report["leftovers"], report["objects"]) == ([], 0, 7)
    assert json.loads(Path("run/config.json").read_text())["store"] == url
    found = dict(bytes_of(s3, url))
    files = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(found) > 60 and len(files) > 6
    everything = {**found, **files, "output": "".join(outputs).encode()}
    for secret in secrets:
        for name, data in everything.items():
            assert secret.encode() not in data, name
    commands = [
        json.loads(d)["command"]
        for k, d in found.items()
        if k.endswith(".json") and "/commits/" in k
    ]
    assert any("https://***@host/x?***" in command for command in commands)


def test_doctor_checks_the_bucket(wsa, url, kit):
    wsa("doctor", "--json", "--store", f"{url}/none")
    found = json.loads(wsa("doctor", "--json"))
    assert "There is no store" in found["store"]["found"]
    assert found["store bucket"]["ok"] is True and "store disk" not in found
    assert "only if it is absent" in found["store bucket"]["found"]
    kit.add_segment(open_store(url, create=True), game="Breakout")
    assert "objects, Breakout" in json.loads(wsa("doctor", "--json"))["store"]["found"]
    error = wsa("doctor", "--json", "--store", "s3://nowhere/wsa", expected=6)
    assert "Traceback" not in error


def test_a_bucket_that_does_not_answer_ends_with_exit_code_6(wsa, environment):
    environment.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    environment.setenv("WSA_RETRY_S", "0.3")
    for verb in (COLLECT, ENCODE, ("verify",), ("list",)):
        error = wsa(*verb, expected=6)
        assert "It kept failing for 0.3 s." in error and "Traceback" not in error


@pytest.mark.slow
def test_encoding_with_worker_processes(wsa, tmp_path):
    wsa(*COLLECT)
    ended = subprocess.run(
        [sys.executable, "-m", "wsa.cli", *ENCODE, "--workers", "2", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["objects"] == 2
    assert json.loads(wsa("verify", "--json"))["damage"] == []


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("wsa encode --store s3://lab/wsa", "wsa encode --store s3://lab/wsa"),
        ("--store s3://me:pa/ss@w@lab/wsa --seed 1", "--store s3://***@lab/wsa --seed 1"),
        ("--x=https://h/p?a=1&b=2 --y", "--x=https://h/p?*** --y"),
        ("gs://lab/wsa#secret", "gs://lab/wsa#***"),
        ("--scheduler tls://user:pw@host:1", "--scheduler tls://***@host:1"),
        ("me@host a?b=c", "me@host a?b=c"),
        ("the key long-secret-value here", "the key *** here"),
        ("tiny stays", "tiny stays"),
    ],
)
def test_secrets_are_redacted(text, redacted, monkeypatch):
    monkeypatch.setenv("SOME_API_TOKEN", "long-secret-value")
    monkeypatch.setenv("SOME_PASSWORD", "tiny")
    assert redact(text) == redacted
    monkeypatch.setattr(sys, "argv", ["/usr/bin/wsa", *text.split(" ")])
    assert command_line() == f"wsa {redacted}"
