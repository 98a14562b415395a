"""Noise, losses and samplers: pure functions that know nothing of networks or configuration."""
