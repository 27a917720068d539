"""The M-step: supervised fine-tuning of the base model on D_i, a stage of its own in every rank's process.

`stage` is where to begin; `trainer` and `loss` say what is learned, `loader` what a forward pass sees,
`arguments` what the recipe tells transformers, `base` and `checkpoints` what is read and written.
"""
