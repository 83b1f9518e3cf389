"""`wsa pretrain`: training the encoders of the paper, its plan, and what it refuses."""

import pytest

from wsa.learn.pretrain import trainer

TINY = ("--games", "Breakout", "--steps", 3, "--batch-size", 2, "--validate-frequency", 2)
PRETRAIN = ("pretrain", "--encoder", "ae", *TINY, "--run-dir", "new")


def test_running_out_of_memory_is_one_line(filled, monkeypatch):
    def run(*_, **__):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(trainer, "run", run)
    outcome = filled(*PRETRAIN)
    assert outcome.code == 6 and "smaller --batch-size" in outcome.error, outcome.err


def test_an_encoder_is_trained_once_and_described(filled, tmp_path, unchanged):
    code, out, err = filled(*PRETRAIN)
    assert code == 0, err
    assert "played by random" in err and "run new" in err
    header = "encoder gradient steps best at validation loss weights bytes"
    assert " ".join(out.splitlines()[0].split()) == header
    assert "new/ae/ae.safetensors" in out
    files = {path.name for path in (tmp_path / "new" / "ae").iterdir()}
    assert files >= {"ae.safetensors", "manifest.json", "metrics.jsonl", "curves.png", "seen.png"}
    before = (tmp_path / "new/ae/ae.safetensors").read_bytes()
    again = filled(*PRETRAIN)
    assert (again.code, again.out) == (0, out)
    assert (tmp_path / "new/ae/ae.safetensors").read_bytes() == before
    summary = filled(*PRETRAIN, "--json").json
    assert summary["run"] == "new"
    ae = summary["encoders"]["ae"]
    assert (ae["gradient_steps"], ae["training"]["batch_size"]) == (3, 2)
    assert ae["files"]["ae"]["parameters"] == 57_504
    assert ae["games"]["Breakout"]["held_out_episodes"] == 1
    assert ae["command"] and ae["training"]["data"]
    # Another training in the folder is refused.
    with unchanged():
        outcome = filled(*PRETRAIN, "--seed", 9)
    assert outcome.code == 4 and "its seed differ" in outcome.error


def test_a_dry_run_changes_nothing(filled, unchanged):
    with unchanged():
        options = ("--encoder", "ae,segmentation", *TINY, "--dry-run", "--json")
        found = filled("pretrain", *options).json
    assert list(found) == ["ae", "segmentation"]
    assert found["ae"]["gradient_steps"] == 3 and found["segmentation"]["parameters"] == 7_142_086
    assert found["ae"]["hours_without_validations"] > 0


def test_epochs_are_passes_over_the_training_frames(filled):
    options = ("--encoder", "ae", "--games", "Breakout", "--epochs", 2, "--batch-size", 8)
    found = filled("pretrain", *options, "--dry-run", "--json").json
    assert found["ae"]["gradient_steps"] == 2 * 200 * 0.8 / 8


def test_a_memory_limit_that_frames_exceed_is_reported(filled):
    outcome = filled("pretrain", "--encoder", "ae", *TINY, "--dry-run", "--memory-gb", "0.001")
    assert outcome.code == 0
    assert "do not fit into 1.0 MB of memory" in outcome.err


def test_help_names_every_encoder(wsa):
    text = " ".join(wsa("pretrain", "--help").out.split())
    assert all(f" {name}" in text for name in trainer.TRAINEES)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--encoder", "vit"), 2, "write one or more of ae,stdim,mae,transporter,segmentation"),
        (("--games", "Qbert"), 3, "wsa collect --game Qbert"),
        (("--games", "Breakout", "--policies", "expert"), 3, "available: random"),
        (("--steps", 5, "--epochs", 1), 2, "Give --steps or --epochs"),
        (("--batch-size", 1), 2, "at least 2"),
        (("--held-out", 1), 2, "above 0 and below 1"),
        (("--learning-rate", -1), 2, "--learning-rate must be from 0 to 1"),
        (("--games", "Breakout", "--memory-gb", "0.00001"), 2, "--memory-gb"),
    ],
)
def test_impossible_options_are_refused(filled, unchanged, options, code, message):
    with unchanged():
        outcome = filled("pretrain", "--encoder", "ae", *options, "--run-dir", "new")
    assert outcome.code == code and message in outcome.error


OUTPUTS = {"ae": ("map", [16, 16, 64]), "vos": ("pooled", [512])}


@pytest.mark.slow
@pytest.mark.parametrize("trained", [{"ae": "ae"}, {"ae": "ae", "vos": "segmentation"}])
def test_trained_encoders_are_encoded_and_learned_from(filled, trained):
    training = ("--encoder", ",".join(trained.values()), *TINY, "--run-dir", "new")
    assert filled("pretrain", *training).code == 0
    weights = ",".join(f"{m}=new/{e}/{m}.safetensors" for m, e in trained.items())
    options = ("--models", ",".join(trained), "--scheduler", "inproc", "--weights", weights)
    code, _, err = filled("encode", *options)
    assert code == 0, err
    stored = {m["model"]: m for m in filled("models", "--json").json["stored"]}
    for model in trained:
        assert (stored[model]["output"], stored[model]["shape"]) == OUTPUTS[model]
    assert filled("encode", *options).code == 0  # Nothing is left to do.
    learned = filled("learn", "--game", "Breakout", "--models", stored["ae"]["key"],
                    "--updates", 2, "--run-dir", "agent")  # fmt: skip
    assert learned.code == 0, learned.err
    # Without a weights file, the model is the one that comes with wsa.
    *_, last = trained
    assert filled("encode", "--models", last, "--scheduler", "inproc").code == 0
    stored = filled("models", "--json").json["stored"]
    assert len({m["key"] for m in stored if m["model"] == last}) == 2
