"""The run itself: plan, loop, reference, state, and the worker process they live in."""
