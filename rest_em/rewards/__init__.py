"""Rewards r(x, y): built-in ones, plug-ins by name or file, and the processes that call them.

`answers` finds and compares final answers, `registry` turns a recipe's name into a function, `graders` calls
it in processes that can be killed. Code written by a model is not run here: there is no sandbox.
"""
