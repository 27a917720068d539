"""The E-step: solutions drawn from a policy, in process with transformers.

`units` cuts a request into work units, `draws` turns logits and random numbers into tokens, `shared_prefix`
and `stock` are the two engines that decode a unit, `policy` loads a model, `stage` is the process of a rank.
Judging is left to `rest_em.rewards`.
"""
