"""Data: real sets, embedded sets, procedural sets."""
