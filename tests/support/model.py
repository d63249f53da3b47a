"""The embedded model's file, fetched once for all tests and all their runs."""

import io
import os
import shutil
from pathlib import Path

import platformdirs

from tollway.upstreams.embedded.model_file import ensure_model
from tollway.upstreams.embedded.progress import PlainProgress


def the_model() -> Path:
    kept = os.environ.get("TOLLWAY_TEST_DATA_DIR") or platformdirs.user_cache_dir("tollway-tests")
    return ensure_model(Path(kept), progress=PlainProgress(io.StringIO()))


def put_model_into(data_dir: Path) -> None:
    """As if an earlier start had fetched it."""
    file = the_model()
    target = data_dir / "models" / file.name
    target.parent.mkdir(parents=True)
    try:
        os.link(file, target)
    except OSError:  # on another file system
        shutil.copy(file, target)
