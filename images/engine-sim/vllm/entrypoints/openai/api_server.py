"""Lets ``python3 -m vllm.entrypoints.openai.api_server`` start the simulated engine too.

The packages around this module have no ``__init__.py``, so that a real vLLM always goes first.
"""

import sys

from engine_sim.__main__ import api_server

if __name__ == "__main__":
    sys.exit(api_server())
