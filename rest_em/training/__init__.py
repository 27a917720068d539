"""The M-step: supervised fine-tuning of the base model on D_i, a stage of its own in every rank's process.

`stage` is where to begin; `trainer` and `loss` say what is learned, `loader` and `attention` what a forward
pass sees, `arguments` what the recipe tells transformers, `base`, `examples` and `retokenized` what is read,
`checkpoints` what an epoch leaves, `resume` and `saved` how an M-step goes on, `room` what it needs on the
disk.
"""
