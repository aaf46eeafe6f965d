"""The checks behind `dpo check`: findings, not prints; nothing is written anywhere."""
