"""Helpers of the tests: runs, terminals, models and data to test with."""
