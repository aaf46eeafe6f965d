"""Fuzzer with thousands of hostile inputs: `make fuzz`. `corpus/` has the inputs found before."""
