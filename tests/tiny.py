"""Models small enough for a step in milliseconds."""

from pathlib import Path


def save_narrow_clip(folder: Path) -> Path:
    """A CLIP of one narrow layer a tower, random, with the sample world's processor."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from tasks.sample import train_clip

    torch.manual_seed(3)
    _, processor = train_clip.build()
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 32}
    ends = {k: getattr(processor.tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPConfig(
        text_config={**tower, **ends, "vocab_size": len(processor.tokenizer), "max_position_embeddings": 77},
        vision_config={**tower, "image_size": 96, "patch_size": 32},
        projection_dim=32,
    )
    CLIPModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
