"""Alerts about a run while it trains: events in, alerts out; no torch."""
