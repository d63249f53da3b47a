"""A file of settings is either used as written or refused with the key's path and the mend."""

from pathlib import Path
from typing import get_args

import pytest

from tollway.errors import ConfigurationError
from tollway.settings import SECTIONS, Parameter, Secret, ServedBy, Settings, load_settings
from tollway.settings.values import EMBEDDED_PARAMETERS
from tollway.wire.requests import OPTIONAL_FIELDS

CONTRACT = """
[server]
host = "0.0.0.0"
port = 9090
data_dir = "data"
database = "sqlite"
rate_store = "memory"
trusted_proxies = ["10.0.0.7", "fd00::/8"]
drain_seconds = 30
store_replies = true

[limits]
requests_per_minute = 3
other_requests_per_minute = 10
concurrent_requests = 6
failed_authentications_per_minute = 1
starting_credits = 0

[tiers.budget]
prompt_rate = 7
completion_rate = 40

[[upstreams]]
name = "gpu-1"
base_url = "https://gpu-1.example/v1"
api_key = "env:GPU_1_KEY"
total_seconds = 60

[[models]]
id = "bluenexus/glm-4.7-flash-tee"
tier = "budget"
context_length = 131072
max_output_tokens = 8192
default_max_tokens = 4096
supported_parameters = ["temperature", "tools"]
confidential = true
upstreams = [{ name = "gpu-1", model = "zai-org/GLM-4.7-Flash", weight = 1 }]

[[models]]
id = "tollway/smollm2-135m"
tier = "budget"
upstreams = [{ name = "embedded" }]
"""

UPSTREAM = """
[[upstreams]]
name = "gpu-1"
base_url = "http://gpu-1.example/v1"
"""

MODEL = """
[[models]]
id = "m1"
context_length = 1000
upstreams = [{ name = "gpu-1" }]
"""


BUDGET = MODEL + 'tier = "budget"\n'


def settings_of(folder: Path, text: str, *, for_serving: bool = True) -> Settings:
    path = folder / "tollway.toml"
    path.write_text(text)
    return load_settings(path, for_serving=for_serving)


def refusal_of(folder: Path, text: str) -> str:
    with pytest.raises(ConfigurationError) as refused:
        settings_of(folder, text)
    return refused.value.message


def test_without_a_file_the_embedded_model_is_served() -> None:
    settings = load_settings(None)

    assert settings.serves_embedded
    (model,) = settings.models
    assert (model.id, model.tier) == ("tollway/smollm2-135m", "budget")
    assert (model.prompt_rate, model.completion_rate) == (700, 4000)
    assert (model.context_length, model.max_output_tokens, model.default_max_tokens) == (4096,) * 3
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8080)
    assert settings.server.data_dir.name == "tollway"
    assert settings.server.drain_seconds == 120
    assert settings.limits.requests_per_minute == 30
    assert settings.limits.other_requests_per_minute == 100
    assert settings.limits.concurrent_requests == 64
    assert settings.limits.failed_authentications_per_minute == 10
    assert settings.limits.starting_credits == 100_000


def test_every_key_of_the_contract_is_taken_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_1_KEY", "key-1")

    settings = settings_of(tmp_path, CONTRACT)

    assert settings.server.data_dir == tmp_path / "data"
    assert settings.server.access_log == "access.log"
    assert settings.server.trusted_proxies == ("10.0.0.7", "fd00::/8")
    assert settings.limits.starting_credits == 0
    (upstream,) = settings.upstreams
    assert upstream.api_key is not None
    assert upstream.api_key.reveal() == "key-1"
    assert (upstream.connect_seconds, upstream.total_seconds) == (3, 60)
    glm, smol = settings.models
    assert (glm.prompt_rate, glm.completion_rate) == (7, 40)
    assert glm.supported_parameters == {"temperature", "tools"}
    assert glm.confidential
    assert glm.upstreams[0].model == "zai-org/GLM-4.7-Flash"
    assert smol.context_length == 4096
    assert smol.supported_parameters == EMBEDDED_PARAMETERS


def test_what_the_command_says_goes_before_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "tollway.toml"
    path.write_text('[server]\nhost = "0.0.0.0"\nport = 1\ndata_dir = "a"\n')

    settings = load_settings(path, data_dir=tmp_path / "b", host="::1", port=2)

    server = settings.server
    assert (server.data_dir, server.host, server.port) == (tmp_path / "b", "::1", 2)


def test_one_line_serves_a_gguf_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "Qwen 2.5.gguf").touch()

    settings = settings_of(tmp_path, 'embedded.gguf = "Qwen 2.5.gguf"')

    assert settings.embedded.gguf == tmp_path / "Qwen 2.5.gguf"
    assert settings.models[0].id == "local/Qwen-2.5"
    assert settings.models[0].prompt_rate == 700


def test_a_model_with_its_own_rates_has_the_tier_custom(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, UPSTREAM + MODEL + "prompt_rate = 0\ncompletion_rate = 5\n")

    (model,) = settings.models
    assert (model.tier, model.prompt_rate, model.completion_rate) == ("custom", 0, 5)
    assert model.upstreams[0].model == "m1"
    assert not settings.serves_embedded


def test_cached_tokens_and_reasoning_may_have_rates_of_their_own(tmp_path: Path) -> None:
    tier = "[tiers.gold]\nprompt_rate = 7\ncompletion_rate = 9\ncached_prompt_rate = 0\n"
    own = MODEL.replace("m1", "m2") + "prompt_rate = 1\ncompletion_rate = 5\nreasoning_rate = 6\n"
    settings = settings_of(tmp_path, UPSTREAM + tier + MODEL + 'tier = "gold"\n' + own)

    assert [(m.cached_prompt_rate, m.reasoning_rate) for m in settings.models] == [
        (0, None),
        (None, 6),
    ]


def test_a_model_has_a_policy(tmp_path: Path) -> None:
    policy = (
        'tier = "budget"\ndenied_parameters = ["logit_bias", "user"]\n'
        'defaults = { temperature = 0, stop = ["."], reasoning_effort = "low" }\n'
        "vision = true\nimage_tokens = 1500\nmax_image_bytes = 1000\n"
    )
    plain = MODEL.replace("m1", "m2") + 'tier = "budget"\n'
    model, without = settings_of(tmp_path, UPSTREAM + MODEL + policy + plain).models

    assert model.denied_parameters == {"logit_bias", "user"}
    assert model.defaults == {"temperature": 0.0, "stop": (".",), "reasoning_effort": "low"}
    assert (model.image_tokens, model.max_image_bytes) == (1500, 1000)
    assert (without.denied_parameters, without.defaults) == (frozenset(), {})
    assert without.image_tokens is None


def test_an_upstream_has_a_dialect(tmp_path: Path) -> None:
    azure = UPSTREAM.replace("gpu-1", "azure") + 'dialect = "azure"\napi_version = "2024-10-21"\n'
    settings = settings_of(tmp_path, UPSTREAM + azure)

    assert [(u.dialect, u.api_version) for u in settings.upstreams] == [
        ("generic", None),
        ("azure", "2024-10-21"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[servr]", "servr: there is no such setting. Did you mean `server`?"),
        ("warnings = 1", "warnings: there is no such setting."),
        ("[server]\nprot = 1", "server.prot: there is no such setting. Did you mean `port`?"),
        ('[server]\nport = "80"', "server.port: expected a whole number, got text in quotes."),
        ("[server]\nport = true", "server.port: expected a whole number, got true or false."),
        ("[server]\nport = 65536", "server.port: expected a whole number <= 65535."),
        ("server = 1", "server: expected a table, got a whole number."),
        ('[server]\ndatabase = "oracle://x/y"', "server.database: it is neither"),
        ('[server]\ndatabase = "env:NOT_SET"', "server.database: the environment variable NOT_SET"),
        ('[server]\ndatabase = "postgresql://x:y/z"', "server.database: this is no URL."),
        ('[server]\nrate_store = "valkey"', "server.rate_store: it is neither"),
        ('[server]\nrate_store = "memcached://x"', "server.rate_store: it is neither"),
        ('[server]\nrate_store = "valkey://x/first"', "server.rate_store: it is neither"),
        ('[server]\nrate_store = "valkey:///0"', "server.rate_store: it is neither"),
        ('[server]\nrate_store = "unix://x"', "server.rate_store: it is neither"),
        ('[server]\ntrusted_proxies = ["::1", "x"]', "server.trusted_proxies[1]: 'x' does not"),
        ("[limits]\nrequests_per_minute = 0", "limits.requests_per_minute: expected"),
        ("[tiers]\nbudget = 1", "tiers.budget: expected a table, got a whole number."),
        ("tiers = 1", "tiers: write each as a table, [tiers.NAME]."),
        ("[tiers.gold]\nprompt_rate = 1", "tiers.gold.completion_rate: it is missing. Add it."),
        (
            "[tiers.gold]\nprompt_rate = -1\ncompletion_rate = 1",
            "tiers.gold.prompt_rate: expected a whole number >= 0.",
        ),
        ("[embedded]\nparallel = 0", "embedded.parallel: expected a whole number >= 1."),
        ('embedded.gguf = "none.gguf"', "embedded.gguf: there is no file"),
        ("[upstreams]\nname = 1", "upstreams: write each as a table of its own, [[upstreams]]."),
        ('[[upstreams]]\nname = "a"', "upstreams[0].base_url: it is missing. Add it."),
        (
            '[[upstreams]]\nname = "a b"\nbase_url = "http://x"',
            "upstreams[0].name: it may have letters, digits and",
        ),
        (
            '[[upstreams]]\nname = "a"\nbase_url = "gpu-1:80"',
            "upstreams[0].base_url: it must start with http:// or https://",
        ),
        (
            '[[upstreams]]\nname = "a"\nbase_url = "http://x/v1/chat/completions/"',
            "upstreams[0].base_url: /chat/completions is added to it. Leave that out.",
        ),
        (
            '[[upstreams]]\nname = "a"\nbase_url = "http://me@x/v1"',
            "upstreams[0].base_url: it must have no user, password, query or fragment.",
        ),
        (
            '[[upstreams]]\nname = "a"\nbase_url = "http://:secret@x/v1"',
            "upstreams[0].base_url: it must have no user, password, query or fragment.",
        ),
        (
            '[[upstreams]]\nname = "a"\nbase_url = "http://x/v1?key=y"',
            "upstreams[0].base_url: it must have no user, password, query or fragment.",
        ),
        (
            '[[upstreams]]\nname = "a"\nbase_url = "http://x/v1#y"',
            "upstreams[0].base_url: it must have no user, password, query or fragment.",
        ),
        (
            '[[upstreams]]\nname = "a"\nbase_url = "http://169.254.169.254/v1"',
            "upstreams[0].base_url: no upstream may be at 169.254.169.254: it is a cloud's",
        ),
        (
            '[[upstreams]]\nname = "a"\nbase_url = "http://[fe80::1]:8000/v1"',
            "upstreams[0].base_url: no upstream may be at fe80::1: it is a link-local address",
        ),
        (
            '[[upstreams]]\nname = "embedded"\nbase_url = "http://x"',
            "upstreams[0].name: `embedded` is the model that Tollway runs itself",
        ),
        (UPSTREAM + UPSTREAM, "upstreams[1].name: 'gpu-1' is taken by upstreams[0]."),
        (
            UPSTREAM + 'dialect = "klingon"',
            "upstreams[0].dialect: invalid enum value 'klingon'. There are generic, vllm, sglang,",
        ),
        (
            UPSTREAM + 'dialect = "opnai"',
            "upstreams[0].dialect: invalid enum value 'opnai'. Did you mean `openai`?",
        ),
        (
            UPSTREAM + BUDGET + 'defaults = { verbosity = "loud" }',
            "models[0].defaults.verbosity: invalid enum value 'loud'. There are low, medium, high.",
        ),
        (UPSTREAM + 'api_version = "2024-10-21"', "upstreams[0].api_version: only Azure has one."),
        (
            UPSTREAM + 'dialect = "azure"\napi_version = "v/1"',
            "upstreams[0].api_version: it is a date. Write it like 2024-10-21",
        ),
        (UPSTREAM + "total_seconds = 0", "upstreams[0].total_seconds: expected a number > 0"),
        (UPSTREAM + MODEL, "models[0]: the model m1 has no price. Give it a tier"),
        (UPSTREAM + MODEL + "prompt_rate = 1", "models[0].completion_rate: it is missing."),
        (
            UPSTREAM + MODEL + 'tier = "budget"\nprompt_rate = 1',
            "models[0].tier: the model has a tier and rates of its own.",
        ),
        (
            UPSTREAM + MODEL + 'tier = "budget"\nreasoning_rate = 0',
            "models[0].tier: the model has a tier and rates of its own.",
        ),
        (
            UPSTREAM + BUDGET + "vision = true",
            "models[0].image_tokens: it is missing. Say how many input tokens an image is at most",
        ),
        (
            UPSTREAM + BUDGET + "image_tokens = 5",
            "models[0].image_tokens: the model takes no images. Set vision = true with it.",
        ),
        (
            BUDGET.replace("gpu-1", "embedded") + "vision = true\nimage_tokens = 5",
            "models[0].vision: the embedded model reads no images.",
        ),
        (
            UPSTREAM + BUDGET + "defaults = { temperature = 3 }",
            "models[0].defaults.temperature: expected a number <= 2",
        ),
        (
            UPSTREAM + BUDGET + "defaults = { tools = [] }",
            "models[0].defaults.tools: there is no such setting.",
        ),
        (
            UPSTREAM + BUDGET + 'defaults = { seed = 1 }\ndenied_parameters = ["seed"]',
            "models[0].defaults.seed: the model does not take it.",
        ),
        (
            UPSTREAM + BUDGET + 'defaults = { seed = 1 }\nsupported_parameters = ["stop"]',
            "models[0].defaults.seed: the model does not take it.",
        ),
        (
            UPSTREAM
            + BUDGET
            + 'denied_parameters = ["stop"]\nsupported_parameters = ["seed", "stop"]',
            "models[0].denied_parameters: stop is among the supported_parameters too.",
        ),
        (
            BUDGET.replace("gpu-1", "embedded") + 'defaults = { reasoning_effort = "low" }',
            "models[0].defaults.reasoning_effort: the model does not take it.",
        ),
        (
            UPSTREAM + BUDGET.replace('"m1"', '"m1\\n"'),
            "models[0].id: ",
        ),
        (
            UPSTREAM + BUDGET + 'denied_parameters = ["n"]',
            "models[0].denied_parameters[0]: invalid enum value 'n'.",
        ),
        (UPSTREAM + MODEL + "reasoning_rate = 1", "models[0]: the model m1 has no price."),
        (
            UPSTREAM + MODEL + 'tier = "gold"',
            "models[0].tier: there is no tier 'gold'. Declare [tiers.gold], or use one of budget.",
        ),
        (
            MODEL + 'tier = "budget"',
            "models[0].upstreams[0].name: there is no upstream 'gpu-1'. Declare it",
        ),
        ('[[models]]\nid = "m"\ntier = "budget"', "models[0].upstreams: the model m has none."),
        (
            '[[models]]\nid = "m"\ntier = "budget"\n'
            'upstreams = [{ name = "embedded", wieght = 1 }]',
            "models[0].upstreams[0].wieght: there is no such setting. Did you mean `weight`?",
        ),
        (
            UPSTREAM + '[[models]]\nid = "m"\ntier = "budget"\nupstreams = [{ name = "gpu-1" }]',
            "models[0].context_length: it is missing.",
        ),
        (
            UPSTREAM + MODEL + 'tier = "budget"\nmax_output_tokens = 1001',
            "models[0].max_output_tokens: 1001 is more than the context of 1000 holds.",
        ),
        (
            UPSTREAM + MODEL + 'tier = "budget"\ndefault_max_tokens = 1001',
            "models[0].default_max_tokens: 1001 is above max_output_tokens, 1000.",
        ),
        (
            UPSTREAM + MODEL + 'tier = "budget"\nsupported_parameters = ["temprature"]',
            "models[0].supported_parameters[0]: invalid enum value 'temprature'. Did you mean "
            "`temperature`?",
        ),
        (
            UPSTREAM + (MODEL + 'tier = "budget"\n') * 2,
            "models[1].id: 'm1' is taken by models[0]. Each needs its own.",
        ),
        (
            '[[models]]\nid = "m"\ntier = "budget"\ncontext_length = 5000\n'
            'upstreams = [{ name = "embedded" }]',
            "models[0].context_length: 5000 is more than the embedded model is run with, 4096.",
        ),
        (
            '[[models]]\nid = "m"\ntier = "budget"\n'
            'upstreams = [{ name = "embedded" }, { name = "embedded" }]',
            "models[0].upstreams[1].name: 'embedded for m' is taken by models[0].upstreams[0].",
        ),
        (
            UPSTREAM + 'health_path = "health"',
            "upstreams[0].health_path: it must begin with a slash",
        ),
        (
            UPSTREAM + "circuit_failures = -1",
            "upstreams[0].circuit_failures: expected a whole number >= 0.",
        ),
        (
            UPSTREAM + MODEL + 'tier = "budget"\nsticky = "cookie"',
            "models[0].sticky: invalid enum value 'cookie'.",
        ),
        ("port = ", "is not TOML"),
        (f"x = {'[' * 5000}{']' * 5000}", "is nested too deep"),
        (f"x = {'{a = ' * 5000}1{'}' * 5000}", "is nested too deep"),
    ],
)
def test_what_cannot_be_used_is_refused_by_the_path_of_its_key(
    tmp_path: Path, text: str, says: str
) -> None:
    assert says in refusal_of(tmp_path, text)


def test_a_model_may_have_several_upstreams_with_what_is_its_own_there(tmp_path: Path) -> None:
    spare = UPSTREAM.replace("gpu-1", "spare")
    model = """
[[models]]
id = "m1"
tier = "budget"
context_length = 1000
sticky = "prefix"
upstreams = [
  { name = "gpu-1", model = "their/m1", weight = 3, first_byte_seconds = 5 },
  { name = "spare", priority = 1 },
  { name = "spare", model = "their/m2", priority = 2 },
]
"""
    (served,) = settings_of(tmp_path, UPSTREAM + spare + model).models

    assert served.sticky == "prefix"
    assert served.upstreams == (
        ServedBy("gpu-1", "their/m1", 3, 0, first_byte_seconds=5),
        ServedBy("spare", "m1", 1, 1),
        ServedBy("spare", "their/m2", 1, 2),
    )


def test_an_upstream_may_be_link_local_where_its_setting_says_so(tmp_path: Path) -> None:
    table = '[[upstreams]]\nname = "a"\nbase_url = "http://169.254.7.7/v1"\n'

    assert settings_of(tmp_path, table + "allow_link_local = true\n").upstreams[0].allow_link_local
    assert "allow_link_local" in refusal_of(tmp_path, table)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.toml cannot be read: No such file"):
        load_settings(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("env:TOLLWAY_TEST_UNSET", "the environment variable TOLLWAY_TEST_UNSET is not set"),
        ("env:TOLLWAY_TEST_EMPTY", "the environment variable TOLLWAY_TEST_EMPTY is not set"),
        ("env:TOLLWAY_TEST_BROKEN", "what env:TOLLWAY_TEST_BROKEN holds has characters"),
        ("env:TOLLWAY_TEST_HEADER", "what env:TOLLWAY_TEST_HEADER holds begins with Bearer, which"),
        ("file:header.key", "what file:header.key holds begins with Bearer, which is added to it"),
        ("file:none.key", "none.key cannot be read: No such file or directory"),
        ("file:empty.key", "empty.key is empty"),
    ],
)
def test_a_secret_that_is_missing_or_no_key_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, says: str
) -> None:
    monkeypatch.setenv("TOLLWAY_TEST_EMPTY", " ")
    monkeypatch.setenv("TOLLWAY_TEST_BROKEN", "a\nb")
    monkeypatch.setenv("TOLLWAY_TEST_HEADER", "Bearer sk-verysecret")
    (tmp_path / "empty.key").write_text("\n")
    (tmp_path / "header.key").write_text("bearer sk-verysecret\n")

    refusal = refusal_of(tmp_path, UPSTREAM + f'api_key = "{reference}"')

    assert refusal.startswith("upstreams[0].api_key: ")
    assert says in refusal
    assert "verysecret" not in refusal


def test_a_secret_written_into_the_file_is_refused_and_not_told_back(tmp_path: Path) -> None:
    refusal = refusal_of(tmp_path, UPSTREAM + 'api_key = "sk-verysecret"')

    assert "env:NAME" in refusal
    assert "verysecret" not in refusal


def test_a_file_may_begin_with_the_byte_order_mark_that_some_editors_write(
    tmp_path: Path,
) -> None:
    config = tmp_path / "tollway.toml"
    config.write_text("[server]\nport = 8181\n", encoding="utf-8-sig")

    assert load_settings(config).server.port == 8181


def test_a_folder_for_the_access_log_that_is_not_there_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "logs"
    text = '[server]\ndata_dir = "data"\naccess_log = "logs/access.log"\n'

    refusal = refusal_of(tmp_path, text)

    assert refusal == (
        f"server.access_log: there is no folder {folder}. Make it, or correct the path."
    )
    assert settings_of(tmp_path, text, for_serving=False)
    folder.mkdir(parents=True)
    assert settings_of(tmp_path, text)


@pytest.mark.parametrize("target", ["-", "", "access.log", "./a.log", "../a.log", "/dev/stdout"])
def test_an_access_log_may_be_in_a_data_directory_that_is_yet_to_be_made(
    tmp_path: Path, target: str
) -> None:
    text = f'[server]\ndata_dir = "data"\naccess_log = "{target}"\n'

    assert settings_of(tmp_path, text).server.access_log == target


def test_the_access_log_is_looked_for_where_the_command_line_puts_the_data(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    path = tmp_path / "tollway.toml"
    path.write_text('[server]\ndata_dir = "data"\naccess_log = "logs/access.log"\n')

    assert load_settings(path, data_dir=tmp_path)


def test_a_password_in_a_base_url_is_refused_and_not_told_back(tmp_path: Path) -> None:
    text = '[[upstreams]]\nname = "a"\nbase_url = "http://me:verysecret@x/v1"'

    refusal = refusal_of(tmp_path, text)

    assert refusal.startswith("upstreams[0].base_url: ")
    assert "verysecret" not in refusal


def test_a_secret_is_read_from_a_file_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "gpu.key").write_text("key-2\n")

    settings = settings_of(tmp_path, UPSTREAM + 'api_key = "file:gpu.key"')

    assert settings.upstreams[0].api_key is not None
    assert settings.upstreams[0].api_key.reveal() == "key-2"


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_key_that_everybody_can_read_is_warned_of(
    tmp_path: Path, mode: int, warned: bool
) -> None:
    key = tmp_path / "gpu.key"
    key.write_text("key-2")
    key.chmod(mode)

    settings = settings_of(tmp_path, UPSTREAM + 'api_key = "file:gpu.key"')

    assert settings.key_files == (key,)
    assert settings.warnings == (
        (
            f"The key in {key} can be read by every user of this machine. "
            f"Take that away: chmod 600 {key}",
        )
        if warned
        else ()
    )


def test_a_secret_never_shows_in_a_repr(tmp_path: Path) -> None:
    (tmp_path / "gpu.key").write_text("key-2")

    settings = settings_of(tmp_path, UPSTREAM + 'api_key = "file:gpu.key"')

    assert "key-2" not in f"{settings!r} {settings}"
    assert "key-2" not in f"{Secret('key-2')!r} {Secret('key-2')}"


def test_a_command_that_serves_nothing_needs_no_secret(tmp_path: Path) -> None:
    text = UPSTREAM + 'api_key = "env:TOLLWAY_TEST_UNSET"\n[embedded]\ngguf = "none.gguf"'

    settings = settings_of(tmp_path, text, for_serving=False)

    assert settings.upstreams[0].api_key is None


def test_every_optional_field_of_a_request_may_be_a_supported_parameter() -> None:
    assert set(get_args(Parameter)) == OPTIONAL_FIELDS


def test_every_setting_says_what_it_means() -> None:
    undescribed = [
        f"{section}.{field}"
        for section, table in SECTIONS.items()
        for field, annotation in table.__annotations__.items()
        if not any(getattr(meta, "description", None) for meta in annotation.__metadata__)
    ]
    assert undescribed == []


@pytest.mark.parametrize("reference", ["env:TOLLWAY_DB", "file:database-url"])
def test_a_database_is_referred_to_and_its_password_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    url = "postgresql://server:s3cret@db.example:5433/tollway?sslmode=require"
    monkeypatch.setenv("TOLLWAY_DB", url)
    (tmp_path / "database-url").write_text(url + "\n")
    file = tmp_path / "tollway.toml"
    file.write_text(f'[server]\ndatabase = "{reference}"\n')

    for for_serving in (True, False):
        database = load_settings(file, for_serving=for_serving).server.database

        assert (database.reveal(), database.scheme) == (url, "postgresql")
        assert str(database) == "postgresql://server@db.example:5433/tollway"
        assert "s3cret" not in repr(database)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("valkey://:s3cret@rates.example:6380/2", "valkey://rates.example:6380/2"),
        ("rediss://tollway:s3cret@rates.example", "rediss://tollway@rates.example"),
        ("unix:///run/valkey.sock", "unix:///run/valkey.sock"),
        ("memory", "memory"),
    ],
)
def test_a_rate_store_is_referred_to_and_its_password_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, shown: str
) -> None:
    monkeypatch.setenv("RATES", address)

    rate_store = settings_of(tmp_path, '[server]\nrate_store = "env:RATES"').server.rate_store

    assert rate_store.reveal() == address
    assert str(rate_store) == shown
