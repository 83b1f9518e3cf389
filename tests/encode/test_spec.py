"""The spec of a model: outputs as text, and the key that everything in the identity changes."""

from __future__ import annotations

import pickle
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsa.store.common import hashing
from wsa.store.common.errors import UsageError
from wsa.store.objects.model_spec import (
    DEFAULT_OUTPUT,
    GRAY,
    Identity,
    Output,
    Preprocessing,
    model_key,
    parse_output,
)

# Outputs.

KEPT = st.one_of(
    st.sampled_from([Output("pooled"), Output("cls"), Output("map")]),
    st.builds(Output, st.just("grid"), st.integers(1, 99)),
)
REDUCED = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"reduction": st.just("rp"), "numbers": st.integers(1, 99_999)}),
    st.fixed_dictionaries(
        {
            "reduction": st.just("pca"),
            "numbers": st.integers(1, 99_999),
            "game": st.sampled_from(["", "Pong", "MsPacman", "X7"]),
        }
    ),
)


@given(KEPT, REDUCED)
def test_an_output_is_parsed_from_its_own_text(kept, reduced):
    output = msgspec.structs.replace(kept, **reduced)
    assert parse_output(str(output)) == output
    assert str(parse_output(DEFAULT_OUTPUT)) == DEFAULT_OUTPUT


@given(st.text("pooledcasgrim:+123@P", max_size=20))
def test_a_parsed_output_is_written_as_the_same_text(text):
    try:
        output = parse_output(text)
    except UsageError:
        return
    assert str(output) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "grid", "grid:0", "grid:100", "grid:٣", "pca:5", "grid:7+pca:0", "pooled ", "cls:2"),
        *(
            "grid:7+rp:8@Pong",
            "grid:7+pca@Pong",
            "grid:7+pca:8@",
            "grid:7+pca:8+rp:4",
            "map+x:8",
            "map+palette:0",
        ),
    ],
)
def test_invalid_outputs_are_refused(text):
    with pytest.raises(UsageError, match="not an output"):
        parse_output(text)


def test_an_invalid_name_of_a_game_is_refused():
    with pytest.raises(UsageError, match="not a game's name"):
        parse_output("grid:7+pca:8@pong")


# The key.

IDENTITY = Identity(
    architecture="resnet18",
    weights="00",
    random=False,
    preprocessing=Preprocessing("squash", 224, 224, "bicubic", (0.5,) * 3, (0.5,) * 3),
    output="grid:7+pca:512",
    basis="aa",
    window=1,
    precision="fp32",
)
OTHER: dict[str, Any] = {
    "architecture": "resnet34",
    "weights": "01",
    "random": True,
    "output": "grid:7+pca:511",
    "basis": "ab",
    "window": 4,
    "precision": "bf16",
}
OTHER_PIXELS: dict[str, Any] = {
    "crop": 0.875,
    "channels": GRAY,
    "geometry": "crop",
    "height": 225,
    "width": 225,
    "interpolation": "bilinear",
    "mean": (0.5, 0.5, 0.51),
    "std": (0.5, 0.5, 0.51),
}


def test_every_field_of_the_identity_changes_the_key():
    assert {*OTHER, "preprocessing"} == set(Identity.__struct_fields__)
    assert set(OTHER_PIXELS) == set(Preprocessing.__struct_fields__)
    replace = msgspec.structs.replace
    others = [replace(IDENTITY, **{name: value}) for name, value in OTHER.items()]
    others += [
        replace(IDENTITY, preprocessing=replace(IDENTITY.preprocessing, **{name: value}))
        for name, value in OTHER_PIXELS.items()
    ]
    keys = [model_key("m", identity) for identity in [IDENTITY, *others]]
    assert len(set(keys)) == len(keys)
    assert model_key("m", replace(IDENTITY)) == keys[0] != model_key("n", IDENTITY)


# Few values per field, so that identities often differ in one field only.
IDENTITIES = st.builds(
    Identity,
    architecture=st.sampled_from(["resnet18", "resnet18d"]),
    weights=st.text("0123456789abcdef", min_size=2, max_size=2),
    random=st.booleans(),
    preprocessing=st.builds(
        Preprocessing,
        geometry=st.sampled_from(["squash", "crop", "pad"]),
        height=st.integers(223, 225),
        width=st.integers(223, 225),
        interpolation=st.sampled_from(["bicubic", "bilinear"]),
        mean=st.tuples(*[st.sampled_from([0.485, 0.5, 0.50000001])] * 3),
        std=st.tuples(*[st.sampled_from([0.229, 0.5])] * 3),
        crop=st.sampled_from([1.0, 0.875, 0.9]),
        channels=st.sampled_from(["rgb", GRAY]),
    ),
    output=st.sampled_from(["pooled", "grid:7", "grid:7+pca:512", "grid:71+pca:2", "map+rp:2"]),
    basis=st.sampled_from(["", "aa"]),
    window=st.sampled_from([1, 4]),
    precision=st.sampled_from(["fp32", "tf32", "fp16", "bf16"]),
)


@settings(max_examples=max(200, 4 * settings().max_examples))
@given(IDENTITIES, st.data())
def test_equal_keys_mean_equal_identities(identity, data):
    """P13: a model that differs in any one field has another key."""
    field = data.draw(st.sampled_from(sorted(Identity.__struct_fields__)))
    other = msgspec.structs.replace(identity, **{field: getattr(data.draw(IDENTITIES), field)})
    assert (model_key("m", other) == model_key("m", identity)) == (other == identity)


def test_the_key_never_changes_also_after_pickling_or_reading_json():
    """Pickling or parsing gives other objects with the same value."""
    elsewhere = pickle.loads(pickle.dumps(IDENTITY))  # noqa: S301  Its own.
    read = msgspec.json.decode(hashing.canonical(IDENTITY), type=Identity)
    assert elsewhere.preprocessing.crop is not IDENTITY.preprocessing.crop
    assert {model_key("m", one) for one in (IDENTITY, elsewhere, read)} == {"m-6f883fa4820c"}
