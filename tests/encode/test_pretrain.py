"""Training of the paper's encoders: exact resumption, validation, early stopping, and files."""

import json
import os
import signal

import cv2
import msgspec
import pytest
import safetensors.torch
import torch

from wsa.learn.pretrain import trainer
from wsa.learn.pretrain.autoencoder import Autoencoder
from wsa.learn.pretrain.segmentation import MovingObjects
from wsa.learn.pretrain.trainer import TRAINEES, Training, trainee
from wsa.learn.training import checkpoint
from wsa.store.common import hashing
from wsa.store.common.errors import ConflictError

TRAINING = Training(
    encoder="ae",
    store="store",
    segments=(("Pong", "0123456789ab-e000-000000000-00040"),),
    data="00",
    seed=3,
    steps=12,
    batch_size=4,
    learning_rate=1e-3,
    held_out=0.25,
    validate_frequency=4,
    patience=0,
    log_frequency=2,
    save_frequency=5,
)


def hold_out_few(examples):
    """Keep a few held-out frames, as many more of Pong as of Breakout, so that validation is fast."""
    for game, count in (("Breakout", 3), ("Pong", 5)):
        if game in examples.held_out:
            examples.held_out[game] = examples.held_out[game][:count]
    return examples


@pytest.fixture(scope="module")
def examples(read_examples):
    return hold_out_few(read_examples(Autoencoder.training_input))


def read_metrics(folder):
    """The lines of a run's metrics, without clocks."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clocks = ("time", "time/steps_per_s")
    return [{k: v for k, v in line.items() if k not in clocks} for line in lines]


def test_an_interrupted_training_resumes_exactly(examples, tmp_path):
    whole = trainer.train_encoder(TRAINING, examples, tmp_path / "whole")

    def interrupt(step, _):
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer.train_encoder(TRAINING, examples, tmp_path / "cut", on_line=interrupt)
    assert checkpoint.latest(tmp_path / "cut" / "checkpoints").stem == "000000006"
    torch.manual_seed(99)
    rest = trainer.train_encoder(TRAINING, examples, tmp_path / "cut")
    assert (whole.step, rest.step, rest.best) == (12, 12, whole.best)
    assert read_metrics(tmp_path / "cut") == read_metrics(tmp_path / "whole")
    one, other = (
        safetensors.torch.load_file(checkpoint.latest(tmp_path / name / "checkpoints"))
        for name in ("whole", "cut")
    )
    assert one.keys() == other.keys() and any(name.startswith("optimizer") for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert len(checkpoint.all_of(tmp_path / "cut" / "checkpoints")) == 2
    again = trainer.train_encoder(TRAINING, examples, tmp_path / "cut")
    assert (again.step, again.steps_per_s, again.best) == (12, 0.0, whole.best)


@pytest.mark.slow
def test_a_finished_training_can_be_extended(examples, tmp_path):
    short = msgspec.structs.replace(TRAINING, steps=6, validate_frequency=6, log_frequency=1)
    trainer.begin(tmp_path / "long", short)
    trainer.train_encoder(short, examples, tmp_path / "long")
    trainer.begin(tmp_path / "long", TRAINING)
    rest = trainer.train_encoder(TRAINING, examples, tmp_path / "long")
    whole = trainer.train_encoder(TRAINING, examples, tmp_path / "whole")
    assert rest.step == whole.step == 12
    one, other = (
        safetensors.torch.load_file(checkpoint.latest(tmp_path / name / "checkpoints"))
        for name in ("whole", "long")
    )
    learned = [name for name in one if name.startswith(("network", "optimizer"))]
    assert learned and all(torch.equal(one[name], other[name]) for name in learned)
    with pytest.raises(ConflictError, match="its steps, validate_frequency, log_frequency differ"):
        trainer.begin(tmp_path / "long", short)


def test_a_training_with_a_schedule_cannot_be_extended(tmp_path):
    masks = msgspec.structs.replace(TRAINING, encoder="segmentation")
    trainer.begin(tmp_path, masks)
    longer = msgspec.structs.replace(masks, steps=24)
    with pytest.raises(ConflictError, match="its schedule fixes the number of steps"):
        trainer.begin(tmp_path, longer)


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "same"), [("ae", False), ("stdim", True)])
def test_half_precision_is_for_networks_that_support_it(encoder, same, read_examples, tmp_path):
    training = msgspec.structs.replace(TRAINING, encoder=encoder, steps=2, validate_frequency=2)
    examples = read_examples(trainee(encoder).training_input)
    exact, half = (
        trainer.train_encoder(
            msgspec.structs.replace(training, precision=name), examples, tmp_path / name
        )
        for name in ("fp32", "bf16")
    )
    assert all(p.dtype == torch.float32 for p in half.network.parameters())
    pairs = zip(exact.network.parameters(), half.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) == same
    assert half.best.loss == pytest.approx(exact.best.loss, rel=0.05)


def test_the_best_weights_have_the_lowest_loss_on_all_held_out_frames(
    examples, tmp_path, monkeypatch
):
    """A loss on one random batch would choose the luckiest draw."""
    states = {}
    real = trainer.validation_loss

    def validation_loss(network, *rest):
        states[round(12 * rest[2])] = {k: v.clone() for k, v in network.state_dict().items()}
        return real(network, *rest)

    monkeypatch.setattr(trainer, "validation_loss", validation_loss)
    training = msgspec.structs.replace(TRAINING, learning_rate=0.01)
    trained = trainer.train_encoder(training, examples, tmp_path)
    losses = {
        step: sum(real(network, examples, 4, step / 12, "cpu").values()) / 2
        for step, weights in states.items()
        for network in [Autoencoder()]
        if network.load_state_dict(weights)
    }
    best = min(losses, key=losses.__getitem__)
    assert trained.best.step == best
    assert trained.best.loss == pytest.approx(losses[best], rel=1e-5)
    weights = trained.network.state_dict()
    assert all(torch.equal(weights[name], states[best][name]) for name in weights)
    logged = {
        line["step"]: line["losses/validation"]
        for line in read_metrics(tmp_path)
        if "losses/validation" in line
    }
    assert logged == pytest.approx(losses, rel=1e-5)


def test_a_validation_loss_is_the_mean_over_frames_and_then_over_games(examples):
    torch.manual_seed(0)
    network = Autoencoder().eval()
    validation_losses = trainer.validation_loss(network, examples, 2, 0, "cpu")
    for game in ("Breakout", "Pong"):
        losses = [
            network.loss(batch[i : i + 1] / 255, 0)[0].item()
            for batch_game, batch in examples.validation(2)
            if batch_game == game
            for i in range(len(batch))
        ]
        assert len(losses) == len(examples.held_out[game])
        assert validation_losses[game] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize("patience", [0, 2])
def test_training_stops_when_validation_stops_falling(patience, examples, tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 1.0, 2.0, 5.0, 0.5])
    monkeypatch.setattr(trainer, "validation_loss", lambda *_: {"Pong": next(losses)})
    training = msgspec.structs.replace(TRAINING, patience=patience, validate_frequency=2)
    trained = trainer.train_encoder(training, examples, tmp_path)
    if patience:
        assert (trained.step, trained.best.step, trained.best.loss) == (8, 4, 1.0)
        assert trained.best.stopped
        assert trainer.train_encoder(training, examples, tmp_path).step == 8  # It stays stopped.
    else:
        assert (trained.step, trained.best.step, trained.best.stopped) == (12, 12, False)


@pytest.mark.slow
def test_before_a_loss_settles_the_newest_weights_are_best(read_examples, tmp_path, monkeypatch):
    losses = iter([0.1, 0.2, 0.3, 0.9, 0.8, 1.0])
    monkeypatch.setattr(trainer, "validation_loss", lambda *_: {"Pong": next(losses)})
    monkeypatch.setattr(MovingObjects, "settled", 0.5)
    training = msgspec.structs.replace(
        TRAINING, encoder="segmentation", patience=1, validate_frequency=2, batch_size=2
    )
    trained = trainer.train_encoder(training, read_examples(MovingObjects.training_input), tmp_path)
    assert (trained.best.step, trained.best.loss, trained.step) == (10, 0.8, 12)


FAST = [("ae", True), ("transporter", False)]


@pytest.mark.parametrize(
    ("encoder", "half"),
    [
        pytest.param(encoder, half, marks=() if (encoder, half) in FAST else pytest.mark.slow)
        for half in (False, True)
        for encoder in TRAINEES
    ],
)
def test_a_training_leaves_encoders_a_manifest_and_pictures(encoder, half, read_examples, tmp_path):
    kind = trainee(encoder)
    training = msgspec.structs.replace(
        TRAINING, encoder=encoder, steps=1, batch_size=2, validate_frequency=2
    )
    examples = hold_out_few(read_examples(kind.training_input, "Pong"))
    trainer.begin(tmp_path, training)
    manifest = trainer.run(tmp_path, training, examples, half=half)
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest
    assert manifest["training"]["seed"] == 3 and manifest["gradient_steps"] == 1
    assert manifest["games"]["Pong"]["held_out_episodes"] == 1
    trained = trainer.train_encoder(training, examples, tmp_path).network.frozen()
    assert list(manifest["files"]) == list(trained)
    for alias, module in kind().frozen().items():
        data = (tmp_path / f"{alias}.safetensors").read_bytes()
        assert manifest["files"][alias]["blake3"] == hashing.checksum(data)
        tensors = safetensors.torch.load(data)
        assert {t.dtype for t in tensors.values()} == {torch.half if half else torch.float32}
        missing = module.load_state_dict(tensors, strict=False)
        assert not missing.unexpected_keys
        assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
        for name, tensor in trained[alias].state_dict().items():
            if name in tensors:
                rounded = tensor.half().float() if half else tensor
                assert torch.equal(module.state_dict()[name], rounded)
    panels = 2 if encoder.startswith("stdim") else 3 if encoder in ("ae", "mae") else 4
    picture = cv2.imread(str(tmp_path / "seen.png"))
    assert picture is not None
    assert picture.shape[1] == 2 * panels * kind.training_input.width
    assert cv2.imread(str(tmp_path / "curves.png")) is not None


def test_another_training_in_the_same_folder_is_refused(tmp_path):
    trainer.begin(tmp_path, TRAINING)
    before = (tmp_path / "config.json").read_bytes()
    trainer.begin(tmp_path, TRAINING)
    with pytest.raises(ConflictError, match="its seed, steps differ"):
        trainer.begin(tmp_path, msgspec.structs.replace(TRAINING, seed=4, steps=13))
    assert (tmp_path / "config.json").read_bytes() == before
