"""MllmRetriever: released prompts and layouts, padding that changes no vector, adapters in vision and language part."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tasks.errors import ConfigError
from tasks.models.retrievers.adapters import save_adapter
from tasks.models.retrievers.clip import ClipRetriever
from tasks.models.retrievers.load import load_retriever
from tasks.models.retrievers.mllm import MllmRetriever, chat_template
from tasks.models.retrievers.published.bge_vl_prompts import CIR_INSTRUCTION, llava_next_prompt, qwen_vl_prompt
from tests.support.tiny_mllm import FAMILIES, TEXTS, images, save_tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random checkpoint of each architecture."""
    return {name: save_tiny(name, tmp_path_factory.mktemp("tiny") / name) for name in FAMILIES}


@pytest.fixture(scope="module")
def retrievers(folders: dict[str, Path]) -> dict[str, MllmRetriever]:
    """To be left as they are."""
    return {name: MllmRetriever(str(folder), device="cpu") for name, folder in folders.items()}


# --- prompts ------------------------------------------------------------------------------------------------------


def test_the_prompt_of_llava_next_is_the_released_one():
    task = (
        "Retrieve the target image that best meets the combined criteria by using both the provided image and the "
        "image retrieval instructions: "
    )
    assert task == CIR_INSTRUCTION
    assert (
        llava_next_prompt("make it blue", True, True, task)
        == f"[INST] \n <instruct> {task} <query>  make it blue \n <image> [/INST]"
    )
    assert (
        llava_next_prompt("make it blue", True, True) == "[INST] \n <instruct>  <query> make it blue \n <image> [/INST]"
    )
    assert (
        llava_next_prompt("make it blue", False, True, task)
        == f"[INST] \n <instruct> {task} <query>  make it blue \n [/INST]"
    )
    assert llava_next_prompt("", True, False, task) == "[INST]  <image> [/INST]"
    assert llava_next_prompt("a blue star", True, False) == "[INST]  a blue star \n <image> [/INST]"
    assert llava_next_prompt("a blue star", False, False) == "[INST]  a blue star \n [/INST]"


def test_the_prompt_of_qwen_vl_is_that_of_embedding_models_built_on_it():
    head, tail = (
        "<|im_start|>system\nFind it.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n<|endoftext|>",
    )
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert qwen_vl_prompt("make it blue", True, True, "Find it.") == f"{head}{image}make it blue{tail}"
    plain = head.replace("Find it.", "You are a helpful assistant.")
    assert qwen_vl_prompt("", True, False, "Find it.") == f"{plain}{image}{tail}" == qwen_vl_prompt("", True, True)
    assert qwen_vl_prompt("a blue star", False, False) == f"{plain}a blue star{tail}"


@given(text=st.text(max_size=30), has_image=st.booleans(), is_query=st.booleans(), instruction=st.text(max_size=20))
def test_the_published_chat_templates_make_the_same_prompts(
    text: str, has_image: bool, is_query: bool, instruction: str
):
    from transformers.utils.chat_template_utils import render_jinja_template

    system = [{"role": "system", "content": [{"type": "text", "text": instruction}]}] if is_query else []
    content = [{"type": "image"}] * has_image + [{"type": "text", "text": text}] * bool(text)
    for family, prompt in (("llava_next", llava_next_prompt), ("qwen_vl", qwen_vl_prompt)):
        prompts, _ = render_jinja_template(
            [[*system, {"role": "user", "content": content}]], chat_template=chat_template(family)
        )
        assert prompts == [prompt(text, has_image, is_query, instruction)]


@pytest.mark.parametrize("name", FAMILIES)
def test_image_tokens_spelled_in_a_text_are_removed(retrievers: dict[str, MllmRetriever], name: str):
    hostile = "make <image> it <|image_pad|> blue <|vision_start|>"
    rows = retrievers[name].encode(images(1), [hostile])
    assert np.allclose(rows, retrievers[name].encode(images(1), ["make   it   blue  "]), atol=1e-6)


# --- vectors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_on_the_left_changes_no_vector(retrievers: dict[str, MllmRetriever], name: str):
    retriever, batch = retrievers[name], images(3)
    together = retriever.encode(batch, TEXTS)
    alone = np.concatenate([retriever.encode(batch[n : n + 1], TEXTS[n : n + 1]) for n in range(3)])
    assert np.abs(together - alone).max() < 1e-5 and np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    made = retriever.inputs.batch(
        list(zip(retriever.preprocess(batch), TEXTS, strict=True)), is_query=True, instruction="x"
    )
    lengths = made["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 1 and made["attention_mask"][:, -1].all(), (
        "the batch is of unequal lengths, its last column whole"
    )
    shown = retriever.preprocess(batch)
    mixed = [(shown[0], ""), (None, TEXTS[1]), (shown[2], TEXTS[2])]
    one_by_one = np.concatenate([retriever.raw_features([c], "candidate") for c in mixed])
    assert np.allclose(retriever.raw_features(mixed, "candidate"), one_by_one, atol=1e-5), (
        "images, texts and both in one batch"
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_vector_is_the_last_hidden_state_of_plain_transformers(
    folders: dict[str, Path], retrievers: dict[str, MllmRetriever], name: str
):
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    model = AutoModelForImageTextToText.from_pretrained(folders[name]).eval()
    tokenizer, processor = (
        AutoTokenizer.from_pretrained(folders[name]),
        AutoImageProcessor.from_pretrained(folders[name], backend="pil"),
    )
    image, text = images(1)[0], TEXTS[0]
    if name == "llava_next":
        made = processor(images=[image.resize((512, 512))], return_tensors="pt")
        tokens = 16 + 64 + 8  # 4 x 4 of the whole image, 8 x 8 of its four crops, a line break a row
        prompt = f"[INST] \n <instruct> {CIR_INSTRUCTION} <query>  {text} \n {'<image>' * tokens} [/INST]"
    else:
        made = processor(images=[image], return_tensors="pt")
        pads = "<|image_pad|>" * int(made["image_grid_thw"].prod() // 4)
        content = f"<|vision_start|>{pads}<|vision_end|>{text}"
        prompt = f"<|im_start|>system\n{CIR_INSTRUCTION}<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n"
        prompt += "<|im_start|>assistant\n<|endoftext|>"
    asked = tokenizer([prompt], return_tensors="pt")
    ids = asked["input_ids"]
    kinds = {} if name == "llava_next" else {"mm_token_type_ids": (ids == model.config.image_token_id).int()}
    with torch.inference_mode():
        out = model(input_ids=ids, attention_mask=asked["attention_mask"], output_hidden_states=True, **made, **kinds)
    expected = torch.nn.functional.normalize(out.hidden_states[-1][:, -1], dim=-1).numpy()
    assert np.allclose(retrievers[name].encode([image], [text]), expected, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_role_image_and_text_each_change_the_vector(retrievers: dict[str, MllmRetriever], name: str):
    retriever, (one, other) = retrievers[name], images(2)
    base = retriever.encode([one], [TEXTS[0]])
    for changed in (
        retriever.encode([other], [TEXTS[0]]),
        retriever.encode([one], [TEXTS[1]]),
        retriever.encode([one], [TEXTS[0]], role="candidate"),
        retriever.encode([one]),
        retriever.encode(texts=[TEXTS[0]]),
    ):
        assert np.abs(changed - base).max() > 1e-3
    assert np.array_equal(retriever.encode([one]), retriever.encode([one], role="candidate"))
    with pytest.raises(ConfigError, match="as many of both"):
        retriever.encode([one], TEXTS)
    with pytest.raises(ConfigError, match="as many of both"):
        retriever.encode()


# --- which type, which layout -------------------------------------------------------------------------------------


def test_the_type_follows_from_config_json(folders: dict[str, Path], tmp_path: Path):
    assert isinstance(load_retriever("tasks/sample/checkpoints/clip", device="cpu"), ClipRetriever)
    assert {load_retriever(str(folder), device="cpu").kind for folder in folders.values()} == set(FAMILIES)
    with pytest.raises(ConfigError, match="is no MLLM retriever; expected one of"):
        MllmRetriever("tasks/sample/checkpoints/vlm", device="cpu")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_retriever(str(tmp_path / "nothing"), device="cpu")


def test_the_layout_of_bge_vl_mllm_loads_without_running_its_code(
    folders: dict[str, Path], retrievers: dict[str, MllmRetriever], tmp_path: Path
):
    """BAAI/BGE-VL-MLLM-S1: a remote class in config.json, transformers 4.4x's names of weights, a processor that does
    not know how to count.
    """
    folder = tmp_path / "BGE-VL-MLLM-S1"
    shutil.copytree(folders["llava_next"], folder)
    renamed = {
        k.replace("vision_tower.", "vision_tower.vision_model.", 1): v
        for k, v in load_file(folder / "model.safetensors").items()
    }
    assert {
        "image_newline",
        "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight",
        "multi_modal_projector.linear_1.weight",
    } <= set(renamed)
    assert "vision_tower.vision_model.embeddings.class_embedding" in renamed
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "architectures": ["LLaVANextForEmbedding"],
        "torch_dtype": config.pop("dtype"),
        "transformers_version": "4.45.2",
    }
    config["auto_map"] = {"AutoModel": "modeling_llavanext_for_embedding.LLaVANextForEmbedding"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_llavanext_for_embedding.py").write_text("raise SystemExit('code from the folder ran')")
    images_part = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    images_part |= {"image_processor_type": "LlavaNextImageProcessor", "processor_class": "LlavaNextProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(images_part))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "LlavaNextProcessor"}))
    loaded = load_retriever(str(folder), device="cpu")
    assert np.allclose(
        loaded.encode(images(2), TEXTS[:2]), retrievers["llava_next"].encode(images(2), TEXTS[:2]), atol=1e-5
    )
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError):
        load_retriever(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("name", "kind"), [("qwen2_vl", "Qwen2VLImageProcessor"), ("qwen3_vl", "Qwen2VLImageProcessorFast")]
)
def test_the_layout_of_qwen_vl_loads_without_torchvision(
    folders: dict[str, Path], retrievers: dict[str, MllmRetriever], tmp_path: Path, name: str, kind: str
):
    """Qwen/Qwen2-VL-* keep the text's settings at the top of config.json; both name the processor that runs on
    torchvision.
    """
    folder = tmp_path / name
    shutil.copytree(folders[name], folder)
    config = json.loads((folder / "config.json").read_text())
    if name == "qwen2_vl":
        text = config.pop("text_config")
        config = {
            **{k: v for k, v in text.items() if k not in ("model_type", "rope_parameters")},
            **config,
            "rope_theta": 10000.0,
        }
        config["rope_scaling"] = {"type": "mrope", "mrope_section": text["rope_parameters"]["mrope_section"]}
        config["vision_config"]["model_type"] = "qwen2_vl"
    (folder / "config.json").write_text(json.dumps(config))
    images_part = json.loads((folder / "preprocessor_config.json").read_text())
    images_part |= {"image_processor_type": kind, "processor_class": "Qwen2VLProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(images_part))
    loaded = load_retriever(str(folder), device="cpu")
    assert np.allclose(loaded.encode(images(2), TEXTS[:2]), retrievers[name].encode(images(2), TEXTS[:2]), atol=1e-5)


# --- adapters -----------------------------------------------------------------------------------------------------


def with_random_adapters(retriever: MllmRetriever) -> MllmRetriever:
    """Adapters that change the output: their second matrix is zero at first."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in retriever.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return retriever


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_are_in_vision_and_language_and_change_nothing_at_first(folders: dict[str, Path], name: str):
    retriever = MllmRetriever(str(folders[name]), device="cpu")
    before = retriever.encode(images(2), TEXTS[:2])
    retriever.add_adapters(rank=4, alpha=8)
    trained = [n for n, p in retriever.model.named_parameters() if p.requires_grad]
    assert all(".lora_A." in n or ".lora_B." in n for n in trained) and not any("lm_head" in n for n in trained)
    vision = "vision_tower" if name == "llava_next" else "visual"
    for part in (vision, "language_model"):
        for layer in ("0", "1"):
            assert any(f".{part}." in n and f".{layer}." in n for n in trained), (part, layer)
    assert np.array_equal(retriever.encode(images(2), TEXTS[:2]), before)
    assert np.abs(with_random_adapters(retriever).encode(images(2), TEXTS[:2]) - before).max() > 1e-3


def test_adapters_that_leave_out_a_part_are_refused(folders: dict[str, Path]):
    for targets, message in (
        (r".*language_model.*q_proj", r"no module of \['vision_tower'\] is matched"),
        ("nothing_of_the_kind", "not found"),
    ):
        with pytest.raises(ConfigError, match=message):
            MllmRetriever(str(folders["llava_next"]), device="cpu").add_adapters(rank=2, alpha=2, targets=targets)


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_and_loaded_again_gives_the_same_vectors_merged_or_by_its_adapter(
    folders: dict[str, Path], tmp_path: Path, name: str
):
    from peft import PeftModel

    retriever = MllmRetriever(str(folders[name]), device="cpu")
    retriever.add_adapters(rank=4, alpha=8)
    before = with_random_adapters(retriever).encode(images(3), TEXTS)
    folder = tmp_path / "candidate"
    folder.mkdir()
    (folder / "stale").write_text("")
    retriever.save(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["candidate"] and not (folder / "stale").exists()
    assert not list(folder.rglob("*.bin")) and (folder / "adapter" / "adapter_model.safetensors").is_file()
    small = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".safetensors"]
    assert not [p.name for p in small if str(folders[name]).encode() in p.read_bytes()], "no path of this machine"
    merged = load_retriever(str(folder), device="cpu")
    assert np.abs(merged.encode(images(3), TEXTS) - before).max() < 1e-5
    assert np.abs(retriever.encode(images(3), TEXTS) - before).max() < 1e-5, (
        "the retriever continues as the merged model"
    )
    base = MllmRetriever(str(folders[name]), device="cpu")
    base.model = PeftModel.from_pretrained(base.model, folder / "adapter").eval()
    assert np.abs(base.encode(images(3), TEXTS) - before).max() < 1e-5
    again = tmp_path / "again"
    merged.save(again)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not (again / "adapter").exists(), "without adapters there is none to save"


@pytest.mark.parametrize(
    ("base", "noted"),
    [
        ("BAAI/BGE-VL-MLLM-S1", ("BAAI/BGE-VL-MLLM-S1", "abc")),
        ("/data/models/mine", (None, None)),
        ("./mine", (None, None)),
        ("tasks/sample/checkpoints/clip", (None, None)),
    ],
)
def test_an_adapter_names_its_base_only_where_that_is_a_name_on_the_hub(
    tmp_path: Path, base: str, noted: tuple[str | None, str | None]
):
    from peft import LoraConfig, get_peft_model

    linear = torch.nn.Sequential(torch.nn.Linear(4, 4))
    save_adapter(get_peft_model(linear, LoraConfig(target_modules=["0"])), tmp_path, base, "abc")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == noted


def test_features_of_images_alone_cannot_be_reused(retrievers: dict[str, MllmRetriever]):
    with pytest.raises(ConfigError, match="encodes image and text together"):
        retrievers["qwen3_vl"].content_encoder(lambda key: images(1)[0], 2, {"a": np.zeros(48, np.float32)})
