"""`tollway model`."""

from tollway.cli.execution import execute
from tollway.cli.parameters import Config, DataDir, Json, group
from tollway.cli.printing import print_list

commands = group("The models on offer.")


@commands.command("list")
def model_list(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the models on offer, with their rates in credits per million tokens."""
    print_list(
        execute("model list", {}, config, data_dir),
        as_json,
        ("id", "tier", "prompt_rate", "completion_rate", "context", "output"),
        lambda m: (
            m["id"],
            m["tier"],
            m["pricing"]["prompt"],
            m["pricing"]["completion"],
            m["context_length"],
            m["max_output_tokens"],
        ),
    )
