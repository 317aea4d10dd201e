"""The layers beside those of other libraries, in one run: time, memory, compilation.

`python -m jaxnorm bench` runs it. What is measured is the table in `_rows.py`; the libraries are in `_peers`.
"""
