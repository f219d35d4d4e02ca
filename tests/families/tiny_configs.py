"""Sizes of the tiny random models, and what single families need on top, as data; image-text models: next door."""

VOCABULARY = 96
WINDOW = 4  # sliding windows and attention chunk sizes, shorter than the segments of the tests
BLOCK = 8  # blocks of recurrent layers and keys kept by sparse attention: fewer than the 14 tokens of a row


def _same(value, *names):
    return dict.fromkeys(names, value)


# Set wherever a configuration class has a field of this name.
SIZES = {
    **_same(VOCABULARY, "vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"),
    **_same(32, "hidden_size", "hidden_size_global", "d_model", "emb_dim", "embed_dim", "n_embd", "moe_hidden_size"),
    **_same(32, "embedding_size", "input_embedding_size", "output_embedding_size", "word_embed_proj_dim"),
    **_same(32, "out_hidden_size", "projector_hidden_size", "alignment_intermediate_size", "vision_hidden_size"),
    **_same(48, "intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "dff", "dim_ff"),
    **_same(48, "d_inner", "feed_forward_size", "ffn_hidden_size", "intermediate_size_mlp", "dense_intermediate_size"),
    **_same(2, "num_hidden_layers", "n_layer", "n_layers", "num_layers", "layers", "depth"),
    **_same(2, "encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"),
    **_same(4, "num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "swa_num_attention_heads"),
    **_same(4, "encoder_attention_heads", "decoder_attention_heads"),
    **_same(4, "num_encoder_attention_heads", "num_decoder_attention_heads"),
    **_same(2, "num_key_value_heads", "swa_num_key_value_heads", "num_kv_heads"),
    **_same(8, "head_dim", "kv_channels", "dim_head", "attention_head_size", "d_head", "swa_head_dim"),
    **_same(8, "query_pre_attn_scalar", "hidden_size_per_layer_input", "adapter_rank", "laurel_rank", "hc_lowrank"),
    **_same(128, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"),
    **_same(128, "max_target_positions", "max_source_positions", "model_max_length"),
    # Smaller ones would hide differences of the logits.
    **_same(1.0, "logit_scale", "output_multiplier", "logits_mup_width_multiplier"),
    # Windows.
    **_same(WINDOW, "sliding_window", "sliding_window_size", "attention_window_size", "window_size"),
    **_same(WINDOW, "attention_chunk_size", "local_attention_window_len"),
    **_same(2 * WINDOW, "local_attention"),  # counts both sides
    # Latent attention, and the indexers of sparse attention.
    **_same(16, "q_lora_rank", "kv_lora_rank", "o_lora_rank"),
    **_same(8, "qk_nope_head_dim", "v_head_dim", "index_head_dim"),
    **_same(4, "qk_rope_head_dim", "rotary_dim"),
    **_same(2, "index_n_heads", "o_groups"),
    **_same(BLOCK, "index_topk", "keep_window_size"),
    **_same(4, "index_block_size"),
    **_same(2, "index_topk_blocks"),
    # Experts: one dense layer before them where the family has one.
    **_same(4, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    **_same(2, "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "zero_expert_num"),
    **_same(1, "n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
    **_same(16, "moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"),
    **_same(16, "shared_experts_intermediate_size", "moe_shared_expert_intermediate_size", "shared_intermediate_size"),
    **_same(16, "router_hidden_size", "share_expert_dim"),
    **_same(1, "n_group", "num_expert_group", "topk_group", "first_k_dense_replace", "num_dense_layers"),
    # Recurrent and convolution layers.
    **_same(8, "state_size", "ssm_state_size", "mamba_d_state", "linear_head_dim", "mamba_head_dim"),
    **_same(8, "linear_key_head_dim", "linear_value_head_dim", "block_multiple_of"),
    **_same(4, "linear_num_heads", "linear_num_key_heads", "linear_num_value_heads"),
    **_same(4, "mamba_n_heads", "n_mamba_heads", "mamba_num_heads"),
    **_same(2, "n_groups"),
    **_same(64, "mamba_d_ssm"),
    **_same(BLOCK, "mamba_chunk_size", "chunk_size", "block_size"),
    # Special tokens stay below the ids that the tests use.
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    "add_cross_attention": False,
}

# Parts of the names of fields that hold a probability of dropping something.
DROPOUTS = ("dropout", "pdrop", "layerdrop", "drop_path")

# Layers by kind, each kind once.
LOCAL = {"layer_types": ["sliding_attention", "full_attention"]}
CHUNKED = {"layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0], "moe_layers": [1]}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
MIXED = {"mlp_layer_types": ["dense", "sparse"]}
MIXED_QWEN = {"mlp_only_layers": [0]}
WINDOWED_QWEN = {"use_sliding_window": True, "max_window_layers": 1}
LATENT = {"num_key_value_heads": 4}  # keys and values are expanded to every head
SHARED_INDEX = {**LATENT, **MIXED, "indexer_types": ["full", "shared"]}
# The last two layers reuse the keys and values of the first two.
REUSED = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "global_head_dim": 8,
}
# Positions in three dimensions, which share the four frequencies of a head of 8.
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
MROPE = {**ROPE, "mrope_section": [2, 1, 1]}
ENCODERS = {"text_encoder": {"model_type": "t5"}, "audio_encoder": {"model_type": "encodec"}}
INKLING = {"layer_types": ["hybrid_sliding", "hybrid"], "d_rel": 4, "rel_extent": 16}
JAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
ZAMBA = {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3}

# The towers of models that also take images or sound; built, but never run.
TOWERS = ("vision", "audio", "vq", "adapter", "qformer", "perceiver", "sam_config", "text_encoder")
TOWER_SIZES = {
    **_same(32, "image_size", "out_hidden_size", "text_hidden_size", "output_proj_dims", "mm_embed_dim"),
    **_same(32, "output_channels", "adapter_in_dim", "adapter_out_dim", "adapter_input_size", "downsample_hidden_size"),
    **_same(32, "base_channels", "latent_channels", "resolution", "projection_dim", "image_token_embed_dim"),
    **_same(32, "projector_input_dim", "projector_output_dim", "vision_output_dim", "ext_pw_out_channel"),
    **_same(32, "depthwise_separable_out_channel", "nemo_conv_channels"),
    **_same(16, "patch_size", "crop_size", "mm_posemb_size", "position_embedding_size", "num_position_embeddings"),
    **_same(4, "num_key_value_heads"),
    **_same(48, "mlp_dim"),
    **_same(2, "num_blocks"),
}

# What text families need beyond the sizes; the keys are model types.
CONFIGS = {
    "afmoe": LOCAL,
    "axk1": {**LATENT, **MIXED},
    "axk2": {**LATENT, **MIXED},
    "bailing_hybrid": {**LATENT, **LINEAR, **MIXED},
    "bamba": {"attn_layer_indices": [1]},
    "beam": {**LOCAL, **MIXED},
    # The threshold lies among the entropies of the random patcher, so that patches differ in length.
    "blt": {
        "encoder_hash_byte_group_size": [2, 3],
        "encoder_hash_byte_group_vocab": VOCABULARY,
        "patching_threshold": 4.1,
    },
    "cohere2": LOCAL,
    "cohere2_moe": {**LOCAL, **MIXED},
    "cohere_compass_text": {**LOCAL, "rope_parameters": {"full_attention": MROPE, "sliding_attention": MROPE}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "deepseek_v32": {**LATENT, **MIXED},
    "deepseek_v4": {
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
        "mlp_layer_types": ["hash_moe", "moe", "moe"],
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "index_topk": 2,
    },
    "doge": {"sliding_window": None},
    "dots1": LOCAL,
    "dots3_note_text": {
        **LATENT,
        **MIXED,
        "layer_types": ["indexed_attention", "sliding_attention"],
        **{f"swa_{name}": 4 for name in ("num_attention_heads", "num_key_value_heads", "qk_rope_head_dim")},
        **{f"swa_{name}": 8 for name in ("qk_nope_head_dim", "v_head_dim", "q_lora_rank", "kv_lora_rank")},
        "swa_head_dim": 12,
    },
    "exaone4": LOCAL,
    "exaone_moe": {**LOCAL, **MIXED},
    "flint": {**LOCAL, **MIXED_QWEN},
    "gemma3_text": LOCAL,
    "gemma3n_text": REUSED,
    "gemma4_text": REUSED,
    "gemma4_unified_text": REUSED,
    "glm4_moe_lite": {**LATENT, **MIXED},
    "glm_moe_dsa": SHARED_INDEX,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": LINEAR,
    "hy_v4": SHARED_INDEX,
    "inkling2_text": INKLING,
    "inkling_text": {**INKLING, **MIXED},
    "jamba": JAMBA,
    "kimi_linear": {**LATENT, **LINEAR, **MIXED},
    "kolibri1": LOCAL,
    "laguna": {**LOCAL, **MIXED},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "sliding_attention", "full_attention"], "num_hidden_layers": 3},
    "llama4_text": CHUNKED,
    "longcat_flash": {**LATENT, "head_dim": 4, "num_layers": 1},
    "mamba2": {"num_heads": 8},
    "mellum": {**LOCAL, **MIXED},
    "minicpm3": LATENT,
    "minimax": {"sliding_window": None},  # it would narrow the layers that are called full
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"], **MIXED},
    "ministral": LOCAL,
    "mllama_text_model": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
    "musicgen": ENCODERS,
    "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody": ENCODERS,
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "olmo3": LOCAL,
    "qwen2": WINDOWED_QWEN,
    "qwen2_moe": {**WINDOWED_QWEN, **MIXED_QWEN},
    "qwen3": WINDOWED_QWEN,
    "qwen3_5_moe_text": LINEAR,
    "qwen3_5_text": LINEAR,
    "qwen3_moe": MIXED_QWEN,
    "qwen3_next": {**LINEAR, **MIXED_QWEN},
    "qwen4_exp_text": {
        **LINEAR,
        "ple_layer_ids": [1],
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 50,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 1,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [16, 16],
        "local_attn_chunk_length": WINDOW,
        "lsh_attn_chunk_length": WINDOW,
        "num_buckets": 4,
        "hash_seed": 0,
    },
    "roc_bert": {
        "pronunciation_embed_dim": 8,
        "pronunciation_vocab_size": VOCABULARY,
        "shape_embed_dim": 8,
        "shape_vocab_size": VOCABULARY,
    },
    "smollm3": {"layer_types": ["full_attention", "sliding_attention"], "no_rope_layers": [1, 0]},
    "xlm": {"causal": True},
    "xlnet": {"attn_type": "uni"},
    "xmod": {"default_language": "en_XX"},
    "youtu": LATENT,
    "zamba": {**ZAMBA, "num_key_value_heads": 4},
    "zamba2": {**ZAMBA, "num_key_value_heads": 4, "use_shared_attention_adapter": True},
    "zaya": {"layer_types": ["hybrid", "hybrid_sliding"], "num_experts_per_tok": 1},
}

REFUSED = {
    "gemma4_assistant": "It drafts for a Gemma 4 model and reads that model's hidden states, keys and values.",
    "gemma4_unified_assistant": "It drafts for a Gemma 4 model and reads that model's hidden states, keys and values.",
}
