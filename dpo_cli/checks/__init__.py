"""Checks of `dpo check`: they return findings, print nothing and write no files."""
