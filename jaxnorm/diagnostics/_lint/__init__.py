"""The lint: what a traced model computes is followed, run where that decides, and judged by rules."""
