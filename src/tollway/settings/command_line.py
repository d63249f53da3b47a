"""What the command line says of the configuration: where it is, and what goes before it."""

from pathlib import Path

from msgspec import Struct

from tollway.settings.reading import load_settings
from tollway.settings.settings import Settings
from tollway.settings.tables import Embedded


class CommandLine(Struct, frozen=True):
    """Paths are text, for it is handed to other processes as JSON. None: not given."""

    config: str | None
    data_dir: str | None
    host: str | None
    port: int | None

    @classmethod
    def of(
        cls, config: Path | None, data_dir: Path | None, host: str | None, port: int | None
    ) -> "CommandLine":
        return cls(
            None if config is None else str(config.absolute()),
            None if data_dir is None else str(data_dir),
            host,
            port,
        )

    @property
    def file(self) -> Path | None:
        return None if self.config is None else Path(self.config)

    def settings(self, embedded: Embedded | None = None) -> Settings:
        """Reads the configuration. Raises `ConfigurationError`."""
        return load_settings(
            self.file,
            data_dir=None if self.data_dir is None else Path(self.data_dir),
            host=self.host,
            port=self.port,
            embedded=embedded,
        )
