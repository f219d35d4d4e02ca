"""What the parts of image-text models need beyond the sizes that all share: language models, towers, and the whole."""

from families.tiny_configs import LATENT, LOCAL, MIXED, MROPE, SHARED_INDEX, WINDOWED_QWEN

MROPE_QWEN = {**WINDOWED_QWEN, "rope_parameters": MROPE}

CONFIGS = {
    "chameleon": {"vocabulary_map": {"<image>": 0}},
    "chameleon_vqgan": {"channel_multiplier": [1], "num_embeddings": 16},
    "cosmos3_edge_text": {"rope_parameters": MROPE},
    "deepseek_ocr2_sam_vision_model": {"downsample_channels": [32, 32]},
    "deepseek_ocr2_text": {**MIXED, "num_key_value_heads": 4},
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense", "sparse"]},
    "emu3": {"vocabulary_map": {"<image>": 0, "<|extra_200|>": 1}},
    "emu3_vqgan": {"channel_multiplier": [1, 1], "codebook_size": 16},
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [16, 16],
        "rope_parameters": {**MROPE, "mrope_section": [1, 1, 2]},
    },
    "evolla": {
        "protein_encoder_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
        },
        "aligner_num_add_layers": 1,
        "resampler_depth": 1,
        "resampler_dim_head": 8,
        "resampler_heads": 4,
        "resampler_num_latents": 4,
    },
    # Any vision tower fits; their own is a network of timm, which is no dependency here and has no tiny size.
    "fast_vlm": {"vision_config": {"model_type": "clip_vision_model"}},
    "gemma4": {"audio_config": None},  # the audio tower exists for eager attention only, and not in every model
    "glm4v_moe_text": {"rope_parameters": MROPE},
    "glm4v_text": {"rope_parameters": MROPE},
    "glm5_next_text": {
        **LATENT,
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "indexed_attention", "indexed_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "indexer_types": ["full", "full", "shared"],
        "qk_rope_head_dim": 0,
        "index_kpool": 2,
        "index_topk": 4,
    },
    "glm_ocr_text": {"rope_parameters": MROPE},
    "granite4_vision": {
        "deepstack_layer_map": [],
        "downsample_rate": "1/2",
        "text_config": {"model_type": "granite"},
        "vision_config": {"hidden_size": 64},
    },
    "granite_docling_text": {
        "attention_multiplier": 0.35,
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
    },
    "hunyuan_vl_text": {"rope_parameters": {**MROPE, "mrope_section": [1, 1, 1, 1]}},
    "janus_vqgan": {"channel_multiplier": [1], "num_embeddings": 16},
    "mistral4": LATENT,
    "mistral_large4_text": {**SHARED_INDEX, "no_rope_layers": [1, 0]},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "molmo2_vision": {"image_size": [32, 32]},
    "muse_glimmer_text": LOCAL,
    "muse_spark_audio": {
        "num_hidden_layers": 2,
        "patch_sizes": [4, 4],
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
    },
    "muse_spark_text": {**LOCAL, **MIXED},
    "nemotron_h_omni": {
        "audio_config": {"model_type": "parakeet_encoder"},
        "vision_config": {"video_temporal_patch_size": 2},
    },
    "paddleocr_vl_text": {"rope_parameters": MROPE},
    "parakeet_encoder": {"projection_hidden_size": 32, "projection_bias": False},
    "perception_lm": {"vision_config": {"model_type": "clip_vision_model", "model_args": {"embed_dim": 32}}},
    "qwen2_5_omni_text": MROPE_QWEN,
    "qwen2_5_omni_thinker": {"vision_start_token_id": 1},  # read with a mask, but no field of the class
    "qwen2_5_vl_text": MROPE_QWEN,
    "qwen2_vl_text": MROPE_QWEN,
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 1},
    "step3p5": {**LOCAL, **MIXED},
    "unlimited_ocr_sam_vision_model": {"downsample_channels": [32, 32]},
    "unlimited_ocr_text": {"num_key_value_heads": 4},
}

REFUSED = {
    "blip-2": "Its forward pass takes images as a required argument; it cannot run on text alone.",
    "diffusion_gemma": "It denoises a canvas of 256 tokens at once, from random noise; it is no causal language model.",
    "gemma3n": "Its vision tower is the timm network mobilenetv5_300m, which has no tiny size; "
    "gemma3n_text is the language model.",
    "idefics": "Its forward pass refuses inputs without images.",
    "instructblip": "Its forward pass takes images as a required argument; it cannot run on text alone.",
    "instructblipvideo": "Its forward pass takes videos as a required argument; it cannot run on text alone.",
    "kosmos-2": "Its forward pass refuses inputs without images.",
}

# Image-text families that are no decoder language models with a vision tower in front, and why.
WITHOUT_DECODER = {
    "blip": "the text decoder reads the image by cross-attention only",
    "florence2": "encoder-decoder",
    "pi0": "predicts the actions of a robot",
    "pix2struct": "encoder-decoder",
    "pp_formulanet": "encoder-decoder",
    "t5gemma2": "encoder-decoder",
    "udop": "encoder-decoder",
    "vision-encoder-decoder": "encoder-decoder",
}
