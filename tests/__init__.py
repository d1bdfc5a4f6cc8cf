"""The tests."""

HANG = 600
"""Seconds after which a test takes it that something hangs; however slow the machine is, nothing takes so long."""
