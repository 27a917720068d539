"""The settings of transformers and peft that a recipe may not give, because rest_em sets them, and why.

A test holds these names against the installed libraries.
"""

from __future__ import annotations

from collections.abc import Mapping

_RUN_FOLDER = "checkpoints are kept in the run folder, one an epoch"
_CHOICE = "training.checkpoint_choice says which checkpoint is taken"
_EVALUATION = "policies are evaluated by sampling, see the section evaluation"
_HUB = "nothing is pushed to a hub; the run folder holds ordinary checkpoints"
_LAUNCH = "the launch file of `accelerate launch` says it"
_RESUME = "the same command goes on where it stopped"
_PRECISION = "master weights are fp32, and bf16 says whether autocast is used"
_TRACKING = "see the section tracking"
_EXAMPLES = "the M-step's examples and batches are made by rest_em"
_LOGGING = "the loss of every step is logged"
_COMPILED = "an M-step is not compiled: every pack has another shape"

OWNED_TRAINING_KEYS: Mapping[str, str] = {
    "output_dir": _RUN_FOLDER,
    "torch_compile": _COMPILED,
    "torch_compile_backend": _COMPILED,
    "torch_compile_mode": _COMPILED,
    "use_liger_kernel": "the M-step has a loss of its own, which Liger's would take the place of",
    "use_cache": "a training step keeps no cache",
    "ddp_static_graph": "steps of an M-step differ in their number of parts",
    "max_steps": "give num_train_epochs; every epoch ends with a checkpoint",
    "gradient_accumulation_steps": "it follows from global_batch_size",
    "average_tokens_across_devices": "the loss is averaged over the whole batch, whatever the ranks",
    "label_smoothing_factor": "the loss is the likelihood of the solution, weighted by the reward",
    "auto_find_batch_size": "give global_batch_size and per_device_train_batch_size",
    "fp16": _PRECISION,
    "bf16_full_eval": _EVALUATION,
    "fp16_full_eval": _EVALUATION,
    "eval_strategy": _EVALUATION,
    "eval_steps": _EVALUATION,
    "eval_delay": _EVALUATION,
    "eval_on_start": _EVALUATION,
    "eval_do_concat_batches": _EVALUATION,
    "eval_use_gather_object": _EVALUATION,
    "eval_accumulation_steps": _EVALUATION,
    "per_device_eval_batch_size": _EVALUATION,
    "prediction_loss_only": _EVALUATION,
    "include_for_metrics": _EVALUATION,
    "batch_eval_metrics": _EVALUATION,
    "do_train": "every M-step trains",
    "do_eval": _EVALUATION,
    "do_predict": _EVALUATION,
    "save_only_model": _RUN_FOLDER,
    "save_strategy": _RUN_FOLDER,
    "save_steps": "give save_seconds",
    "save_on_each_node": _RUN_FOLDER,
    "save_total_limit": _RUN_FOLDER,
    "enable_jit_checkpoint": _RUN_FOLDER,
    "load_best_model_at_end": _CHOICE,
    "metric_for_best_model": _CHOICE,
    "greater_is_better": _CHOICE,
    "resume_from_checkpoint": _RESUME,
    "ignore_data_skip": _RESUME,
    "restore_callback_states_from_checkpoint": _RESUME,
    "push_to_hub": _HUB,
    "hub_token": _HUB,
    "hub_private_repo": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "report_to": "give tracking.report_to",
    "run_name": "give run_name at the top of the recipe",
    "project": _TRACKING,
    "trackio_space_id": _TRACKING,
    "trackio_bucket_id": _TRACKING,
    "trackio_static_space_id": _TRACKING,
    "logging_strategy": _LOGGING,
    "logging_steps": _LOGGING,
    "logging_first_step": _LOGGING,
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "disable_tqdm": "rest_em shows its own progress",
    "seed": "give seed at the top of the recipe",
    "data_seed": "give seed at the top of the recipe",
    "use_cpu": _LAUNCH,
    "accelerator_config": _LAUNCH,
    "parallelism_config": _LAUNCH,
    "ddp_backend": _LAUNCH,
    "fsdp": _LAUNCH,
    "fsdp_config": _LAUNCH,
    "deepspeed": _LAUNCH,
    "local_rank": _LAUNCH,
    "dataloader_drop_last": "every example is trained on in every epoch",
    "dataloader_num_workers": _EXAMPLES,
    "dataloader_persistent_workers": _EXAMPLES,
    "dataloader_prefetch_factor": _EXAMPLES,
    "dataloader_multiprocessing_context": _EXAMPLES,
    "dataloader_in_order": _EXAMPLES,
    "remove_unused_columns": _EXAMPLES,
    "label_names": _EXAMPLES,
    "length_column_name": _EXAMPLES,
}

OWNED_LORA_KEYS: Mapping[str, str] = {
    "task_type": "a policy is a causal language model",
    "peft_type": "the section is LoRA's",
    "inference_mode": "an adapter is trained, then merged",
    "base_model_name_or_path": "give model.name_or_path",
    "revision": "give model.revision",
    "peft_version": "peft writes it",
    "auto_mapping": "a policy is a causal language model",
}
