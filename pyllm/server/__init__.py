"""llama-server binaries: finding one, running it as a child, and talking to it.

``binary`` finds it, ``port`` picks an address, ``process`` runs it and ends it, ``log`` finds the lines that say why it
died, ``client`` speaks its HTTP API.
"""

from pyllm.server.binary import ServerVersion, find_server, server_version
from pyllm.server.client import RefusedError, ServerChunk, ServerClient, ServerCompletion
from pyllm.server.process import ServerProcess

__all__ = [
    "RefusedError",
    "ServerChunk",
    "ServerClient",
    "ServerCompletion",
    "ServerProcess",
    "ServerVersion",
    "find_server",
    "server_version",
]
