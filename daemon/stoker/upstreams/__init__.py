"""Other OpenAI-compatible servers whose models are served here as well.

How users outgrow one machine: a vLLM, a llama-server or another Stoker on a bigger one is named in
config.toml, its models are listed as NAME/MODEL, and requests for them go there. Nothing is
distributed or balanced here, and everything that such a server sends is taken as hostile.
"""

from stoker.upstreams.names import RemoteModel
from stoker.upstreams.registry import Upstreams

__all__ = ["RemoteModel", "Upstreams"]
