"""`scen serve`: an OpenAI-compatible front of a project, with generation of its own or a vLLM server's behind it."""
