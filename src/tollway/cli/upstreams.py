"""`tollway upstream`."""

from tollway.cli.execution import execute
from tollway.cli.parameters import Config, DataDir, Json, group
from tollway.cli.printing import print_list

commands = group("The servers that run the models, while Tollway runs.")

_UPSTREAM_COLUMNS = (
    "name",
    "condition",
    "since",
    "in_flight",
    "limit",
    "waiting",
    "requests",
    "failures",
    "chat_ms",
    "stream_ms",
    "why",
)


@commands.command("list")
def upstream_list(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the upstreams of the running server: may they be asked, how busy and how quick are they?

    Its condition is serving, open (its circuit is: it failed), probing, resting (it asked for
    that), set aside (it reported more than its cap), unhealthy (its checks fail) or not running."""
    print_list(
        execute("upstream list", {}, config, data_dir),
        as_json,
        _UPSTREAM_COLUMNS,
        lambda u: (
            u["name"],
            u["condition"],
            u["since"],
            u["inFlight"],
            u["concurrentRequests"] or "none",
            u["waiting"],
            u["requests"],
            u["failures"],
            u["firstByteMs"]["chat"] or "-",
            u["firstByteMs"]["chat_stream"] or "-",
            u["why"] or "-",
        ),
    )
