"""A sandbox for programs that a model wrote: warm, isolated in layers, and able to cross data only.

`client` is the trusted side. It starts `server`, which puts itself behind the layers of `isolation` and then
forks one process a program; `candidate` and `tester` are what such a process runs; `values` is the only
format in which anything comes back. What is covered and what is not is in docs/sandbox.md, with its tests.
"""
