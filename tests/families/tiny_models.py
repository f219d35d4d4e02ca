"""Tiny random models of every family that transformers lists, made by one builder from the tables beside it."""

import dataclasses

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto import modeling_auto

from families import tiny_configs, tiny_configs_image_text
from families.tiny_configs import DROPOUTS, SIZES, TOWER_SIZES, TOWERS, VOCABULARY, WINDOW

__all__ = ["CAUSAL_FAMILIES", "IMAGE_TEXT_FAMILIES", "VOCABULARY", "WINDOW", "CannotBuild", "build"]

CAUSAL_FAMILIES = tuple(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
IMAGE_TEXT_FAMILIES = tuple(
    family
    for family in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if family not in tiny_configs_image_text.WITHOUT_DECODER
)

CONFIGS = {**tiny_configs.CONFIGS, **tiny_configs_image_text.CONFIGS}
REFUSED = {**tiny_configs.REFUSED, **tiny_configs_image_text.REFUSED}

# Parts of the names of weights that make queries or keys, alone or fused with others.
QUERIES_AND_KEYS = ("query", "key", "qkv", "c_attn", "Wq", "Wk")
QUERIES_AND_KEYS += ("q_proj", "k_proj", "q_lin", "k_lin", "q_a_proj", "q_b_proj", "kv_a_proj", "kv_b_proj")
SHARPER = 2.0


class CannotBuild(Exception):  # noqa: N818 - reads as the sentence it is in a table of families
    """No tiny model of this family can be built, or it cannot run on text alone; the message says why."""


def build(family, implementation="eager", seed=0, *, image_text=False, **overrides):
    """A float32 model of the family with random weights, in eval mode; overrides go to its (text) configuration."""
    if family in REFUSED:
        raise CannotBuild(REFUSED[family])
    auto = AutoModelForImageTextToText if image_text else AutoModelForCausalLM
    model_class = auto._model_mapping[CONFIG_MAPPING[family]]
    config = make_config(CONFIG_MAPPING[family], model_class, overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = model_class._from_config(config, attn_implementation=implementation, dtype=torch.float32)
        except ImportError as error:
            raise CannotBuild(str(error).strip().split(". ")[0].rstrip(".") + ".") from error
        sharpen(model)
    return model.eval()


def merged(first, second):
    """Nested options, the second's over the first's."""
    both = dict(first)
    for name, value in second.items():
        nested = isinstance(value, dict) and isinstance(both.get(name), dict)
        both[name] = merged(both[name], value) if nested else value
    return both


def make_config(config_class, model_class, overrides):
    """The configuration of the family, or the part of it that a language model without its towers takes."""
    parts = config_class.sub_configs
    text = next((name for name in ("text_config", "decoder") if name in parts), None)
    config = config_class(**config_options(config_class, {text: overrides} if text else overrides))
    candidates = [config, *(getattr(config, name) for name in parts)]
    return next((part for part in candidates if isinstance(part, model_class.config_class)), config)


def config_options(config_class, options, tower=False):
    """The tables' sizes for the fields that the class has, the same for its nested configurations, then the options."""
    options = merged(CONFIGS.get(config_class.model_type, {}), options)
    fields = {field.name: field.default for field in dataclasses.fields(config_class)}
    sizes = {**SIZES, **(TOWER_SIZES if tower else {})}
    chosen = {name: size for name, size in sizes.items() if name in fields}
    chosen |= {name: type(default)(0) for name, default in fields.items() if is_dropout(name, default)}
    nested = {}
    for name, nested_class in nested_classes(config_class, options).items():
        nested[name] = config_options(nested_class, options.get(name, {}), tower or is_tower(name))
        nested[name]["model_type"] = nested_class.model_type
    return {**chosen, **options, **nested}


def nested_classes(config_class, options):
    """Field -> class of every nested configuration that the options do not leave out."""
    classes = {name: part for name, part in config_class.sub_configs.items() if options.get(name, {}) is not None}
    for name, part in classes.items():
        if part is AutoConfig:
            # Which model it stands for if nothing else is said, only an instance with default values tells.
            model_type = options.get(name, {}).get("model_type") or getattr(config_class(), name).model_type
            classes[name] = CONFIG_MAPPING[model_type]
    return classes


def is_tower(name):
    return any(part in name for part in TOWERS)


def is_dropout(name, default):
    is_number = isinstance(default, float | int) and not isinstance(default, bool)
    return is_number and any(part in name for part in DROPOUTS)


@torch.no_grad()
def sharpen(model):
    """Random weights as large as trained ones, and larger for queries and keys.

    Initial weights have a standard deviation of 0.02: attention is flat and adds next to nothing, so that a wrong mask
    would not show.
    """
    kernels = {id(module.weight) for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd)}
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            # Norms stay near 1, or near 0 where they are stored without it; zero biases and gates open.
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        elif is_projection(parameter):
            inputs = parameter[0].numel() if id(parameter) in kernels else parameter.shape[-1]
            sharper = SHARPER if any(part in name for part in QUERIES_AND_KEYS) else 1.0
            parameter.normal_(std=sharper * inputs**-0.5)


def is_projection(parameter):
    """Whether values scatter around zero; decay rates, step sizes and scales, which do not, keep what they have."""
    return parameter.mean().abs() <= 0.5 * parameter.std(correction=0) or not parameter.any()
