"""Checkpoints of SAM and SAM2 as transformers writes them: tiny, and never trained."""

from pathlib import Path

import torch

SIDE = 64


def save_sam(folder: Path) -> Path:
    """SAM with two layers, for pictures of 64 x 64."""
    from transformers import (
        SamConfig,
        SamImageProcessor,
        SamMaskDecoderConfig,
        SamModel,
        SamProcessor,
        SamPromptEncoderConfig,
        SamVisionConfig,
    )

    vision = SamVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=SIDE, patch_size=8,
        output_channels=16, mlp_dim=32, window_size=4, global_attn_indexes=[1], num_pos_feats=8,
    )  # fmt: skip
    prompt = SamPromptEncoderConfig(
        hidden_size=16, image_size=SIDE, patch_size=8, mask_input_channels=4
    )
    decoder = SamMaskDecoderConfig(
        hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16
    )
    torch.manual_seed(0)
    config = SamConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config=prompt.to_dict(),
        mask_decoder_config=decoder.to_dict(),
    )
    SamModel(config).save_pretrained(folder)
    SamProcessor(
        SamImageProcessor(
            size={"longest_edge": SIDE},
            pad_size={"height": SIDE, "width": SIDE},
            mask_size={"longest_edge": SIDE // 2},
            mask_pad_size={"height": SIDE // 2, "width": SIDE // 2},
        )
    ).save_pretrained(folder)
    return folder


def save_sam2(folder: Path) -> Path:
    """SAM2 with a block or two a stage, for clips of 64 x 64; transformers fixes some widths."""
    from transformers import (
        Sam2HieraDetConfig,
        Sam2ImageProcessor,
        Sam2VideoConfig,
        Sam2VideoModel,
        Sam2VideoProcessor,
        Sam2VideoVideoProcessor,
        Sam2VisionConfig,
    )
    from transformers.models.sam2_video.configuration_sam2_video import (
        Sam2VideoMaskDecoderConfig,
        Sam2VideoPromptEncoderConfig,
    )

    backbone = Sam2HieraDetConfig(
        hidden_size=8, num_attention_heads=1, image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 2, 4, 8], window_size_per_stage=[4, 4, 4, 2],
        window_positional_embedding_background_size=[4, 4], global_attention_blocks=[3],
    )  # fmt: skip
    vision = Sam2VisionConfig(
        backbone_config=backbone.to_dict(),
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=128,
    )
    prompt = Sam2VideoPromptEncoderConfig(
        hidden_size=128, image_size=SIDE, patch_size=16, mask_input_channels=4
    )
    decoder = Sam2VideoMaskDecoderConfig(
        hidden_size=128, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16
    )
    torch.manual_seed(0)
    config = Sam2VideoConfig(
        vision_config=vision.to_dict(), prompt_encoder_config=prompt.to_dict(),
        mask_decoder_config=decoder.to_dict(), image_size=SIDE, memory_attention_hidden_size=128,
        memory_attention_num_layers=1, memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[4, 4], memory_encoder_hidden_size=128,
        memory_encoder_output_channels=64, mask_downsampler_embed_dim=128,
        memory_fuser_embed_dim=128, memory_fuser_intermediate_dim=32, memory_fuser_num_layers=1,
    )  # fmt: skip
    Sam2VideoModel(config).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    Sam2VideoProcessor(
        Sam2ImageProcessor(size=size), Sam2VideoVideoProcessor(size=size)
    ).save_pretrained(folder)
    return folder
