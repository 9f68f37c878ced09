"""The tests marked `compat`: of every part what is cheap, for the newest Python and JAX.

A file stands for all its tests, and a name for all its parameters.
"""

COMPAT = """
test_bad_input.py::test_the_op_takes_numpy_arrays
test_bad_input.py::test_config_of_a_run_round_trips_as_json
test_bad_input.py::test_ids_that_jit_hides_turn_to_nan

common/test_dispatch.py
common/test_optional_backends.py
attention/test_causal_attention.py::test_tiles_match_the_map
attention/test_decode_attention.py::test_ragged_rows
screening/test_chunked.py::test_equals_dense_oracle
screening/test_chunked.py::test_transformations
screening/test_more_keys.py::test_more_queries_than_keys_before_a_gap
screening/test_decode_kernels.py::test_rejected_keys_and_values_are_not_read
screening/test_decode_kernels.py::test_tpu_copies_do_not_race
screening/test_pallas_gpu.py::test_equals_dense_oracle
screening/test_pallas_gpu.py::test_products_are_accurate_on_the_device
screening/test_pallas_gpu.py::test_nan_survives_on_the_device
screening/test_pallas_tpu.py::test_other_dims
screening/test_pallas_tpu.py::test_no_races
linear_attention/test_chunked.py::test_default_scale
linear_attention/test_chunked.py::test_transformations
linear_attention/test_documents.py::test_one_document_is_no_documents
linear_attention/test_states.py::test_token_by_token
linear_attention/test_kernels.py::test_groups
linear_attention/test_kernels.py::test_no_races
linear_attention/test_pallas_gpu.py::test_equals_chunked
linear_attention/test_pallas_gpu.py::test_products_are_accurate_on_the_device
linear_attention/test_parallel.py::test_shapes_and_dtypes_are_those_of_the_op
log_linear/test_forms.py::test_neighbouring_heads_share_a_group
log_linear/test_forms.py::test_works_under_vmap_and_remat
log_linear/test_kernels.py::test_no_races_of_a_single_token
log_linear/test_parallel.py::test_shapes_and_dtypes_are_those_of_the_op
aot/test_compile.py::test_screening_lowers
aot/test_flops.py
aot/test_hlo.py

layers
losses/test_next_token.py::test_values_and_gradients_equal_the_dense_form_in_float64
losses/test_next_token.py::test_next_token_of_a_model_is_the_mean_over_scored_targets
mixers/test_settings.py
models/test_nnx_bridge.py
models/test_layer_stack.py
models/test_multiscreen.py::test_remat_changes_nothing
models/test_multiscreen.py::test_rings_lose_nothing_long_after_they_have_wrapped
models/test_linear_family.py::test_configs_survive_json
models/test_linear_family.py::test_remat_and_loop_change_nothing
models/test_linear_family.py::test_packed_documents_are_alone_and_isolated
models/test_linear_family_cache.py::test_greedy_generation_is_the_argmax_of_full_forwards
models/test_transformer.py::test_remat_and_loop_change_nothing
models/test_transformer.py::test_cache_every_split
generate/test_generation.py::test_greedy_is_the_argmax_of_full_forwards
generate/test_generation.py::test_stream_yields_what_generate_returns
generate/test_sampling.py
inspect/test_explorer.py
inspect/test_relevance.py::test_counts_are_those_of_whole_maps
pretrained/test_pretrained.py

data/test_pipeline.py::test_batches_are_pure_functions_of_their_number
data/test_pipeline.py::test_sotu_quickstart_data
data/test_pipeline.py::test_every_kind_of_source_gives_the_same_batches
data/test_prepare_data.py::test_command_line
data/test_prepare_shards.py::test_a_tokenizer_json_comes_along
data/test_sources.py
data/test_token_files.py
data/test_token_shards.py::test_shards_give_the_batches_of_a_token_file
data/test_tokenizers.py
convert/test_files.py
convert/test_round_trips.py::test_there_and_back
convert/test_round_trips.py::test_dtypes
convert/test_export.py

train/test_checkpoint.py::test_training_goes_on_from_the_checkpoint_before
train/test_checkpoint.py::test_damage_is_named_and_the_checkpoint_before_is_found
train/test_config.py::test_named_configs_are_valid_documented_and_survive_json
train/test_config.py::test_help_names_configs_and_fields
train/test_config.py::test_options_that_cannot_be_read_are_one_line
train/test_config.py::test_an_unknown_option_exits_with_2_and_near_matches
train/test_mesh.py::test_every_parameter_is_in_the_table
train/test_multihost.py::test_two_processes_of_four_devices_are_one_run
train/test_optimizer.py
train/test_resume.py::test_a_signal_saves_and_stops_at_the_step_boundary
train/test_resume.py::test_killed_while_saving_and_between_checkpoints
train/test_runs.py::test_samples_pictures_and_tensorboard_are_written
train/test_step.py::test_accumulation_equals_one_large_batch
evaluation/test_command.py::test_perplexity
evaluation/test_command.py::test_relevance
evaluation/test_command.py::test_command_line_ends_with_one_line_and_2
launch/test_commands.py::test_help_and_missing_options
paper/test_execute.py
""".split()


def is_compat(test: str) -> bool:
    """Whether the test of this name is marked."""
    name = test.removeprefix("tests/").partition("[")[0]
    folder, _, _ = name.partition("/")
    return not {folder, name.partition("::")[0], name}.isdisjoint(COMPAT)
