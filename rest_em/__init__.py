"""ReST^EM self-training for language models as one restartable command. Start with `algorithm.py`."""

__version__ = "0.1.0"
