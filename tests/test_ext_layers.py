"""The names of an engine's layers survive the store and the snapshot, and damaged ones are refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from sona import SonaConfig, SonaEngine, SonaTypeError, SonaValueError, SonaVersionError, SqliteStore
from sona.ext.layers import Layer, Layers, get_layers, load_layers, put_layers, save_named

QUERY = Layer(name="encoder.layer.0.query", kind="linear", in_features=8, out_features=12)
POOLED = Layer(name="pooled", kind="pooled", in_features=8, out_features=8)
LAYERS = Layers(layers=(QUERY, POOLED), base_model="mini", model_type="bert", fingerprint="f")


def test_the_engine_is_as_wide_as_the_widest_layer():
    assert LAYERS.width == 12
    assert len(LAYERS) == 2
    assert list(LAYERS) == [QUERY, POOLED]
    assert LAYERS[1] is POOLED


def test_a_store_gives_back_what_was_put(tmp_path: Path):
    with SqliteStore(tmp_path / "s.db") as store:
        assert get_layers(store, "default") is None
        put_layers(store, "default", LAYERS)
        put_layers(store, "default", LAYERS)
        other = Layers(layers=(POOLED,))
        put_layers(store, "other", other)
    with SqliteStore(tmp_path / "s.db") as store:
        assert get_layers(store, "default") == LAYERS
        assert get_layers(store, "other") == other


def test_the_names_stand_beside_a_living_engine(tmp_path: Path):
    config = SonaConfig(hidden_dim=12, num_layers=2)
    with SonaEngine(config, store=tmp_path / "s.db", model_fingerprint="f") as engine:
        assert engine.store is not None
        put_layers(engine.store, engine.name, LAYERS)
        tid = engine.begin_trajectory(np.eye(12)[0])
        engine.add_step(tid, activations=np.eye(12)[1], expected=0.2, layer=1)
        engine.end_trajectory(tid, quality=1.0)
        y = engine.apply(np.eye(12)[0], layer=1)
    with SonaEngine(config, store=tmp_path / "s.db", model_fingerprint="f") as engine:
        assert engine.store is not None
        assert get_layers(engine.store, engine.name) == LAYERS
        np.testing.assert_allclose(engine.apply(np.eye(12)[0], layer=1), y, atol=1e-6)


def test_a_snapshot_has_the_names_and_is_read_as_any_other(tmp_path: Path):
    with SonaEngine(SonaConfig(hidden_dim=12, num_layers=2), model_fingerprint="f") as engine:
        engine.adapters[1].append(np.eye(12)[1], np.eye(12)[0])
        save_named(engine, LAYERS, tmp_path / "named")
        engine.save(tmp_path / "plain")
        expected = engine.apply(np.eye(12)[0], layer=1)
    assert load_layers(tmp_path / "named") == LAYERS
    assert load_layers(tmp_path / "plain") is None
    with SonaEngine.load(os.fspath(tmp_path / "named"), model_fingerprint="f") as engine:
        assert np.array_equal(engine.apply(np.eye(12)[0], layer=1), expected)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"name": ""}, SonaValueError),
        ({"name": 3}, SonaTypeError),
        ({"kind": "conv"}, SonaValueError),
        ({"in_features": 0}, SonaValueError),
        ({"out_features": 2.0}, SonaValueError),
        ({"kind": "residual"}, SonaValueError),
    ],
)
def test_a_layer_that_cannot_be_is_refused(changes: dict[str, object], error: type[Exception]):
    with pytest.raises(error, match="expected"):
        Layer(**({"name": "a", "kind": "linear", "in_features": 8, "out_features": 12} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"layers": ()}, SonaValueError),
        ({"layers": [POOLED]}, SonaTypeError),
        ({"layers": (POOLED, POOLED)}, SonaValueError),
        ({"base_model": None}, SonaTypeError),
        ({"fingerprint": 3}, SonaTypeError),
    ],
)
def test_layers_that_cannot_be_are_refused(changes: dict[str, object], error: type[Exception]):
    with pytest.raises(error, match="expected"):
        Layers(**({"layers": (POOLED,)} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "layers": [{}]}', '{"format": 1, "layers": 3}'])
def test_what_is_not_layers_is_refused(text: str):
    with pytest.raises(SonaVersionError, match="expected"):
        Layers.from_json(text)


def test_the_text_is_json_that_others_can_read():
    content = json.loads(LAYERS.to_json())
    assert content["layers"][0] == {"name": "encoder.layer.0.query", "kind": "linear", "in_features": 8, "out_features": 12}
    assert Layers.from_json(LAYERS.to_json()) == LAYERS
