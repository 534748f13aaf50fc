"""Configurations with vLLM 0.33's field names and defaults: what platforms check and change."""
