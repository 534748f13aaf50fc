"""Attention backends: who owns a cache's layout on each platform."""
