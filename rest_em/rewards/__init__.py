"""Rewards r(x, y): built-in ones, plug-ins by name or file, and the processes that call them.

`answers` and `math_answer` find and compare final answers, `unit_tests` runs programs in `sandbox`.
`registry` turns a recipe's reward into calls (`signatures`), and `graders` makes them in processes that can
be killed.
"""
