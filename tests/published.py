"""Published pipelines with random weights, rebuilt from their configs in the layout of their repositories.

`published.json` has the configs by hub id, and where each is from: read from copies of the published files, or written
down from memory ("recalled").
"""

import copy
import importlib
import json
import random
from pathlib import Path

import diffusers
from safetensors.torch import load_file, save_file

CONFIGS = json.loads((Path(__file__).parent / "published.json").read_text())
RENAMED = {"UNetUnconditionalModel": "UNet2DModel", "Transformer2DModel": "DiTTransformer2DModel"}
# How the layers of an attention block were called when the first of these were saved.
FORMER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def write_pipeline(hub_id, folder, *, weights):
    """A folder as the repository has it.

    Args:
        hub_id: one of `CONFIGS`.
        folder: does not exist yet.
        weights: random ones of a scaled-down network; else configs and tokenizer alone, at full size.
    """
    entry = copy.deepcopy(CONFIGS[hub_id])
    files = reduced(entry["files"]) if weights else entry["files"]
    if "DiT" in hub_id:
        files["model_index.json"]["id2label"] = {str(i): f"class {i}" for i in range(1000)}
    for name, config in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(config, indent=2))
    for part, (library, class_name) in _parts(files["model_index.json"]):
        if class_name == "CLIPTokenizer":
            _write_tokenizer(folder / part)
        elif weights and f"{part}/config.json" in files:
            _write_weights(folder / part, library, class_name, files[f"{part}/config.json"], entry.get("variant"))
    if weights and "config.json" in files:  # of google's first ones: U-Net and scheduler lie in the root
        _write_weights(folder, "diffusers", "UNet2DModel", files["config.json"], None)


def reduced(files):
    """Configs of the same topology with few channels, layers and pixels."""
    files = copy.deepcopy(files)
    text = [files[name] for name in ("text_encoder/config.json", "text_encoder_2/config.json") if name in files]
    for config in text:
        config.update(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
        config.update(projection_dim=32, vocab_size=54, bos_token_id=52, eos_token_id=53, pad_token_id=53)
    for name, config in files.items():
        kind = config.get("_class_name", "")
        if kind.startswith("UNet"):
            narrow = min(config["block_out_channels"])
            config["block_out_channels"] = [64 if c > narrow else 32 for c in config["block_out_channels"]]
            config["sample_size"] = 8 if "/" in name else 32
            config["_diffusers_version"] = "0.9.0"  # of an earlier one diffusers would take 64 in place of less
            if isinstance(config.get("attention_head_dim"), list):  # of heads, in diffusers' words
                config["attention_head_dim"] = [2] * len(config["attention_head_dim"])
            if "cross_attention_dim" in config:
                config["cross_attention_dim"] = 32 * len(text)
            if "transformer_layers_per_block" in config:
                config["transformer_layers_per_block"] = [1, 1, 2]
                config.update(addition_time_embed_dim=8, projection_class_embeddings_input_dim=32 + 6 * 8)
        elif kind in ("VQModel", "AutoencoderKL"):
            config["block_out_channels"] = [32] * len(config["block_out_channels"])
            config.update(layers_per_block=1, sample_size=8 * 2 ** (len(config["block_out_channels"]) - 1))
            if kind == "VQModel":
                config["num_vq_embeddings"] = 64
        elif kind.startswith("Transformer"):
            config.update(num_layers=2, num_attention_heads=2, attention_head_dim=16, sample_size=8)
        elif name == "safety_checker/config.json":
            small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
            config["projection_dim"] = 32
            config["text_config"].update(small)
            config["vision_config"].update(small, image_size=28, patch_size=14)
    return files


def _parts(index):
    return [(part, value) for part, value in index.items() if isinstance(value, list) and value[0] is not None]


def _write_tokenizer(folder):
    """CLIP's, with letters for words."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": words[-1]}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _write_weights(folder, library, class_name, config, variant):
    """Random weights in the names and files of the time; `config.json` stays as published."""
    text = (folder / "config.json").read_text()
    network = _network(library, RENAMED.get(class_name, class_name), config)
    if variant:
        network = network.half()
    network.save_pretrained(folder, variant=variant)
    (folder / "config.json").write_text(text)
    if class_name in ("UNet2DModel", "UNetUnconditionalModel", "AutoencoderKL", "VQModel") and not variant:
        (file,) = folder.glob("*.safetensors")
        save_file({_former(name): tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})


def _network(library, class_name, config):
    if library == "diffusers":
        return getattr(diffusers, class_name).from_config({**config, "_class_name": class_name})
    transformers = importlib.import_module("transformers")
    if class_name == "StableDiffusionSafetyChecker":
        from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

        return StableDiffusionSafetyChecker(transformers.CLIPConfig(**config))
    return getattr(transformers, class_name)(transformers.CLIPTextConfig(**config))


def _former(name):
    if "attentions" in name:
        for new, old in FORMER.items():
            name = name.replace(f".{new}.", f".{old}.")
    return name


def write_images(folder, *, classes=False, size=64, count=6):
    """Pictures with captions, or in folders that are classes."""
    from PIL import Image

    numbers, lines = random.Random(0), []
    for i in range(count):
        name = f"{i % 2}/{i}.png" if classes else f"{i}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        small = Image.new("RGB", (4, 4))
        small.putdata([tuple(numbers.randrange(256) for _ in range(3)) for _ in range(16)])
        small.resize((size, size), Image.Resampling.BICUBIC).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": f"a picture of {'abcdef'[i % 6]}"}))
    if not classes:
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder
