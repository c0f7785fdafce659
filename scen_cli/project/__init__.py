"""What is on disk: the ledger (SQLite) and one safetensors file per edit. Knows no models."""
