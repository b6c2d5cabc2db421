"""Names of models: bundled ones, folders and ids of the hub, and one clear error where there is no such model."""

import socket
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from vlm.errors import ModelError
from vlm.files import hub


@pytest.fixture
def folder(tmp_path) -> Path:
    """As a model's folder looks from outside."""
    (tmp_path / "model").mkdir()
    for name in hub.FILES:
        (tmp_path / "model" / name).touch()
    return tmp_path / "model"


def unresolved(name: str) -> str:
    with pytest.raises(ModelError) as caught:
        hub.resolve(name).folder()
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_bundled_names_come_first(tmp_path, monkeypatch):
    for name in ("tiny", "small"):
        (tmp_path / "weights" / name).mkdir(parents=True)
        (tmp_path / "weights" / name / "config.json").touch()
    monkeypatch.setattr(hub, "BUNDLED", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert hub.bundled() == ["small", "tiny"]
    assert hub.resolve("tiny").folder() == tmp_path / "weights" / "tiny"
    assert hub.resolve("./tiny").folder() == Path("tiny")
    assert "give a bundled name (small, tiny), a folder or a hub id OWNER/NAME" in unresolved("large")


def test_a_folder_is_itself(folder, monkeypatch):
    assert hub.resolve(str(folder)).folder() == folder
    monkeypatch.setenv("HOME", str(folder.parent))
    assert hub.resolve("~/model").folder() == folder


def test_a_file_is_no_folder(folder):
    message = unresolved(str(folder / "model.safetensors"))
    assert "is a file; give the folder that holds config.json, tokenizer.json, model.safetensors" in message


@pytest.mark.parametrize("name", ["nothing", "a/b/c", "./a/b", "/a/b", "~/no/where", "~no-such-user/model", "../b"])
def test_unknown_names(name):
    assert f"no model {name!r}; give a bundled name (" in unresolved(name)


@pytest.mark.parametrize("kind", [kind for kind in hub.FORMS if kind != "model"])
def test_the_weights_of_others_only_where_they_can_be_loaded(kind):
    assert hub.resolve(f"{kind}:a/b", ["model", kind]) == hub.ModelName(f"{kind}:a/b", kind, "a/b")
    assert f"'{kind}:a/b' cannot be used here; give a bundled name (" in unresolved(f"{kind}:a/b")


def test_the_error_lists_what_can_be_given():
    with pytest.raises(ModelError, match=r"'tiny' cannot be used here; give ofa:FILE, .*; timm:MODEL for an image"):
        hub.resolve("tiny", ["timm", "ofa"])


def test_a_hub_id_is_fetched(folder, monkeypatch):
    asked = []

    def fetch(name, allow_patterns, ignore_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert hub.resolve("owner/name").folder() == folder
    assert asked == [("owner/name", [*hub.FILES, *hub.PAIR_FILES, *hub.LABEL_FILES])]  # nothing but what is read


@pytest.mark.enable_socket
@pytest.mark.parametrize("answers", [True, False])
def test_where_nothing_answers_the_client_does_not_wait(monkeypatch, answers):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        if not answers:
            server.close()
        with hub.no_waiting():
            assert answers != constants.HF_HUB_OFFLINE
        assert not constants.HF_HUB_OFFLINE
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
        with hub.no_waiting():  # a proxy may reach what this machine does not
            assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("name", ["", " ", None, 3])
def test_what_is_no_name(name):
    with pytest.raises(ModelError, match="names no model; give a bundled name"):
        hub.resolve(name)


@pytest.mark.parametrize(
    "error, reason",
    [
        (OSError("no route\nto host"), "no route"),
        (RuntimeError("proxy refused"), "proxy refused"),
        (ConnectionError(), "ConnectionError"),
    ],
)
def test_a_failing_network_is_one_line(monkeypatch, error, reason):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    expected = f"'owner/name' is not a local folder and could not be fetched from the hub: {reason}"
    assert unresolved("owner/name") == expected


@pytest.mark.filterwarnings("ignore:A test tried to use socket")
@pytest.mark.parametrize("name", ["owner/name", "own er/na me", "owner/.."])
def test_the_real_client_without_a_network_is_one_line(name):
    # sockets are blocked in tests; ids that the hub's client refuses never reach one
    assert f"{name!r} is not a local folder and could not be fetched from the hub" in unresolved(name)
