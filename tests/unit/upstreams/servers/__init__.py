"""What each server really sends: the shapes of their documentation, sources and issues, named in
the rows of `tollway.upstreams.dialects`. `test_dialects_servers.py` plays them back."""

from tests.unit.upstreams.servers.anthropic import ANTHROPIC
from tests.unit.upstreams.servers.azure import AZURE
from tests.unit.upstreams.servers.cerebras import CEREBRAS
from tests.unit.upstreams.servers.deepseek import DEEPSEEK
from tests.unit.upstreams.servers.gemini import GEMINI
from tests.unit.upstreams.servers.generic import GENERIC
from tests.unit.upstreams.servers.groq import GROQ
from tests.unit.upstreams.servers.llama_server import LLAMA_SERVER
from tests.unit.upstreams.servers.mistral import MISTRAL
from tests.unit.upstreams.servers.ollama import OLLAMA
from tests.unit.upstreams.servers.openai import OPENAI
from tests.unit.upstreams.servers.openrouter import OPENROUTER
from tests.unit.upstreams.servers.sglang import SGLANG
from tests.unit.upstreams.servers.shapes import Shapes
from tests.unit.upstreams.servers.tgi import TGI
from tests.unit.upstreams.servers.together import TOGETHER
from tests.unit.upstreams.servers.vllm import VLLM

SERVERS: dict[str, Shapes] = {
    "generic": GENERIC,
    "vllm": VLLM,
    "sglang": SGLANG,
    "ollama": OLLAMA,
    "llama-server": LLAMA_SERVER,
    "tgi": TGI,
    "openai": OPENAI,
    "azure": AZURE,
    "openrouter": OPENROUTER,
    "mistral": MISTRAL,
    "deepseek": DEEPSEEK,
    "groq": GROQ,
    "cerebras": CEREBRAS,
    "together": TOGETHER,
    "anthropic": ANTHROPIC,
    "gemini": GEMINI,
}
