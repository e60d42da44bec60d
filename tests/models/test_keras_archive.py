"""What a `.keras` file may not be, found before anything of it is loaded; Keras is not needed for that."""

import json
import zipfile

import pytest

from fewbits.errors import InputError
from fewbits.models.keras import archive
from fewbits.models.keras.archive import check_archive, check_parts

PLAIN = {
    "module": "keras.layers",
    "class_name": "Dense",
    "config": {"name": "dense"},
    "registered_name": None,
}


def model(*layers):
    return {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"name": "net", "layers": [*layers]},
        "registered_name": None,
        "compile_config": {"loss": {"module": "mine", "class_name": "Loss", "registered_name": None}},
    }


def save(path, config, weights=b"weights"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("config.json", json.dumps(config))
        file.writestr("model.weights.h5", weights)
    return path


def test_keras_own_parts_pass_whatever_the_loss_was(tmp_path):
    check_archive(save(tmp_path / "fine.keras", model(PLAIN)))


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (
            {
                "module": "keras.layers",
                "class_name": "Lambda",
                "config": {"name": "half"},
                "registered_name": None,
            },
            "layer 'half' is a Lambda",
        ),
        (
            {**PLAIN, "config": {"name": "dense", "activation": {"class_name": "__lambda__", "config": {}}}},
            "layer 'dense' has a lambda",
        ),
        (
            {
                "module": "my.layers",
                "class_name": "Swoosh",
                "config": {"name": "s"},
                "registered_name": "Swoosh",
            },
            "layer 's' is of the class 'Swoosh' of 'my.layers'",
        ),
        (
            {
                "module": None,
                "class_name": "Swoosh",
                "config": {"name": "s"},
                "registered_name": "mine>Swoosh",
            },
            "layer 's' is of the class 'Swoosh' of 'mine>Swoosh'",
        ),
        (
            {
                "module": None,
                "class_name": "Swoosh",
                "config": {"name": "s"},
                "registered_name": "Swoosh",
            },
            "layer 's' is of the class 'Swoosh', which is not Keras' own",
        ),
        (
            {"module": "os", "class_name": "function", "config": "system", "registered_name": "function"},
            "the class 'function' of 'os'",
        ),
    ],
)
def test_code_in_a_file_is_refused_by_name(tmp_path, part, words):
    with pytest.raises(InputError) as caught:
        check_archive(save(tmp_path / "net.keras", model(PLAIN, part)))
    message = str(caught.value)
    assert "net.keras: " in message and words in message
    assert "code from a file is never run" in message


def test_a_config_without_end_is_refused():
    deep: dict = {"class_name": "Dense"}
    for _ in range(5000):
        deep = {"config": deep}
    with pytest.raises(InputError, match="nested without end"):
        check_parts("net", deep)


def test_what_unpacks_without_bound_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "SMALL", 1 << 20)
    path = save(tmp_path / "bomb.keras", model(PLAIN), bytes(1 << 24))
    with pytest.raises(
        InputError, match=r"bomb.keras: it unpacks to 16777\d+ bytes from \d+, which no model does"
    ):
        check_archive(path)


def test_a_config_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MOST_CONFIG", 100)
    with pytest.raises(InputError, match="which no model does"):
        check_archive(save(tmp_path / "net.keras", model(PLAIN)))


def test_every_shorter_file_is_refused_in_one_line(tmp_path):
    whole = save(tmp_path / "whole.keras", model(PLAIN)).read_bytes()
    path = tmp_path / "short.keras"
    for end in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"short\.keras: not a readable \.keras file"):
            check_archive(path)


@pytest.mark.parametrize("left_out", ["config.json", "model.weights.h5"])
def test_other_archives_are_refused(tmp_path, left_out):
    path = tmp_path / "other.keras"
    with zipfile.ZipFile(path, "w") as file:
        for name in {"config.json", "model.weights.h5"} - {left_out}:
            file.writestr(name, "{}")
    with pytest.raises(InputError, match=f"{left_out} is missing in it"):
        check_archive(path)


def test_a_missing_file_and_text_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        check_archive(tmp_path / "none.keras")
    path = tmp_path / "text.keras"
    path.write_text("hello")
    with pytest.raises(InputError, match="not a readable"):
        check_archive(path)


def test_without_tensorflow_the_command_to_install_it_is_said(refused, place, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find(name)
    )
    save(place / "net.keras", model(PLAIN))
    said = refused("compress", "net.keras")
    assert "tensorflow" in said and "pip install 'fewbits[keras]'" in said
