"""`scen serve`: an OpenAI-compatible HTTP API. The answers come from the local model or from a vLLM server."""
