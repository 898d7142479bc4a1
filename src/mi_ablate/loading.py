"""One function that loads any model this package works on, with weights as they were trained.

Up to TransformerLens 3.9 a language model becomes a HookedTransformer, on 4.x a TransformerBridge; both are
unprocessed (LayerNorm not folded, nothing centred) unless asked for, because a fit or an ablation of
processed weights is another model's. Some checkpoints (GPT-2) tie W_E and W_U; HookedTransformer keeps two
copies, and a bridge is given its own here, so that editing what writes to the residual stream leaves the
readout alone.
"""

import contextlib
import importlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from . import adders, diaries
from ._types import HookedModel, nearest
from ._writers import untie
from .toys import checkpoints
from .toys.transformer import usable_device

SHIPPED: dict[str | Path, Path] = {shipped.NAME: shipped.FOLDER for shipped in (adders, diaries)}
"""The folders of the language models that come with the package."""
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "spiece.model",
)
_PROCESSING = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
_CONFIG_ARGUMENTS = ("n_ctx", "first_n_layers", "default_prepend_bos")


def load_model(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    process: bool = False,
    **kw: Any,
) -> HookedModel:
    """Return a hooked model in eval mode: logits ``[batch pos d_vocab]`` from tokens ``Int[batch pos]``.

    Args:
        name_or_path: In this order: a zoo id (`mi_ablate.toys.names`), "diary" or "adder" (the shipped language
            models, `mi_ablate.diaries` and `mi_ablate.adders`), a local file (a toy checkpoint or a published
            toy), a local Hugging Face folder (read without a network, tokenizer optional), or a name that
            TransformerLens knows ("gpt2", "pythia-70m", "EleutherAI/pythia-70m").
        dtype: float32 where None; also as text, "bfloat16".
        device: "cpu" for toys where None, else TransformerLens's choice.
        revision: A branch, tag or commit on the Hugging Face Hub; for names alone.
        process: Fold LayerNorm and centre weights as TransformerLens does by default (``from_pretrained``;
            ``enable_compatibility_mode`` on a bridge).
        kw: Passed on to TransformerLens (``tokenizer=``, ``n_ctx=`` ...); toys take none. With ``hf_model=``
            its weights and config are used, nothing is fetched, and the name is a label.

    Raises:
        ValueError: an unknown name (with the nearest ones), a folder that holds no model, a device that this
            machine lacks, arguments that this kind of model does not take.
        OSError: a known name whose files are neither in the local cache nor to be had.

    """
    precision = precision_of(dtype)
    if device is not None:
        device = usable_device(device)
    path = SHIPPED.get(name_or_path) or Path(name_or_path).expanduser()
    if (isinstance(name_or_path, str) and name_or_path in checkpoints.names()) or path.is_file():
        given = [*kw, *(["revision"] if revision is not None else []), *(["process"] if process else [])]
        if given:
            raise ValueError(
                f"{str(name_or_path)!r} is a toy, which takes dtype and device alone, not {', '.join(given)}."
            )
        return checkpoints.load(name_or_path, device=device or "cpu", dtype=precision).model
    if path.is_dir() or kw.get("hf_model") is not None:
        if revision is not None:
            raise ValueError(f"revision={revision!r} names a version on the Hub; {str(path)!r} is loaded locally.")
        config = _folder_config(path) if kw.get("hf_model") is None else _model_config(kw["hf_model"])
        load = _folder_hooked if _hooked_class() else _folder_bridge
        model = load(path, config, precision, device, process, kw)
    else:
        model = _named(_known(str(name_or_path)), precision, device, revision, process, kw)
    model.eval()
    return model


def precision_of(dtype: torch.dtype | str | None) -> torch.dtype:
    """Return a floating dtype that may be written as text, "bfloat16"; float32 for None."""
    if dtype is None:
        return torch.float32
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype {dtype!r} is no floating PyTorch dtype; pass torch.float32 or 'bfloat16', for example."
        )
    return found


def _hooked_class() -> Any:
    """Return HookedTransformer, or None where the installed TransformerLens (4.x) has only bridges."""
    try:
        from transformer_lens import HookedTransformer
    except ImportError:
        return None
    return HookedTransformer


@contextlib.contextmanager
def _no_deprecation() -> Iterator[None]:
    """Silence the notice that TransformerLens 3.9 gives for every HookedTransformer."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*HookedTransformer.*", category=DeprecationWarning)
        yield


def _folder_config(folder: Path) -> dict[str, Any]:
    """Return the folder's config.json, or raise a ValueError that says what the folder holds instead."""
    file = folder / "config.json"
    if not file.is_file():
        toys = sorted(p.name for p in folder.glob("*.safetensors"))[:5]
        raise ValueError(
            f"{str(folder)!r} is a folder without config.json, so it is no Hugging Face model. "
            + (f"Give one of its files: {', '.join(toys)}." if toys else "model.save_pretrained(folder) makes one.")
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not readable JSON ({type(error).__name__}: {error}).") from None
    if not isinstance(config, dict) or not config.get("architectures"):
        raise ValueError(f'{file} names no "architectures"; save the model with model.save_pretrained(folder).')
    return config


def _model_config(hf_model: Any) -> dict[str, Any]:
    """Return what config.json would hold had ``hf_model`` been saved."""
    config = json.loads(hf_model.config.to_json_string(use_diff=False))
    return {**config, "architectures": [type(hf_model).__name__]}


def _folder_hooked(
    folder: Path, config: dict[str, Any], dtype: torch.dtype, device: Any, process: bool, kw: dict[str, Any]
) -> Any:
    """Load a local folder, or ``hf_model``, as a HookedTransformer.

    TransformerLens guesses the architecture from the *path* before it looks at the config ("llama", "bert",
    "t5" anywhere in it), and needs GPT-2's old ``n_ctx``, which transformers 5 no longer writes. So it is
    shown a folder of neutral name with the config alone, and the weights and the tokenizer are read here.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    kw = dict(kw)
    processing = {key: kw.pop(key, process) for key in _PROCESSING}
    arguments = {key: kw.pop(key) for key in _CONFIG_ARGUMENTS if key in kw}
    padding = {key: kw.pop(key) for key in ("default_padding_side",) if key in kw}
    tokenizer, hf_model = kw.pop("tokenizer", None), kw.pop("hf_model", None)
    loading = importlib.import_module("transformer_lens.loading_from_pretrained")
    if hf_model is None:
        hf_model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, **kw)
    if tokenizer is None and _has_tokenizer(folder):
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **_trust(kw))
    with tempfile.TemporaryDirectory(prefix="mi_ablate-") as temporary:
        shown = folder
        if "auto_map" not in config:  # code of its own is found through the folder
            shown = Path(temporary)
            (shown / "config.json").write_text(json.dumps(_with_n_ctx(config)), encoding="utf-8")
        arguments |= {"fold_ln": processing["fold_ln"], "device": device and str(device), "dtype": dtype}
        cfg = loading.get_pretrained_model_config(str(shown), **arguments, **_trust(kw))
        state = loading.get_pretrained_state_dict(str(shown), cfg, hf_model, dtype=dtype)
    cfg.model_name, cfg.tokenizer_name = folder.resolve().name, None
    with _no_deprecation():
        model = _hooked_class()(cfg, tokenizer, move_to_device=False, **padding)
    if any(processing.values()):
        model.load_and_process_state_dict(state, refactor_factored_attn_matrices=False, **processing)
    else:  # that method of TransformerLens 3.9 rounds float64 to float32 even where there is nothing to process
        model.load_state_dict(model.fill_missing_keys(state), strict=False)
    model.move_model_modules_to_device()
    return model


def _folder_bridge(
    folder: Path, config: dict[str, Any], dtype: torch.dtype, device: Any, process: bool, kw: dict[str, Any]
) -> Any:
    """Load a local folder, or ``hf_model``, as a TransformerBridge, with or without a tokenizer."""
    from transformer_lens.model_bridge import TransformerBridge

    if kw.get("tokenizer") is not None or _has_tokenizer(folder):
        model = TransformerBridge.boot_transformers(str(folder), device=device, dtype=dtype, **kw)
    else:
        from transformer_lens.model_bridge.sources import build_bridge_from_module
        from transformers import AutoModelForCausalLM

        hf_model = kw.get("hf_model")
        if hf_model is None:
            hf_model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, attn_implementation="eager", **kw)
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        hf_model = hf_model if device is None else hf_model.to(device)
        model = build_bridge_from_module(hf_model, config["architectures"][0], hf_config=hf_model.config)
    model.cfg.model_name = folder.resolve().name
    return _finish_bridge(model, process)


def _named(name: str, dtype: torch.dtype, device: Any, revision: str | None, process: bool, kw: dict[str, Any]) -> Any:
    """Load a model by its name on the Hub, from the local cache or the network."""
    kw = dict(kw) if revision is None else {**kw, "revision": revision}
    hooked = _hooked_class()
    try:
        if hooked:
            make = hooked.from_pretrained if process else hooked.from_pretrained_no_processing
            with _no_deprecation():
                return make(name, dtype=dtype, device=device and str(device), **kw)
        from transformer_lens.model_bridge import TransformerBridge
        from transformer_lens.model_bridge.sources.tl_legacy import TL_LEGACY_PREFIXES

        own_format = name.startswith(TL_LEGACY_PREFIXES)  # gelu-1l, attn-only-2l and the like
        bridge: Any = TransformerBridge
        boot = bridge.boot_tl_legacy if own_format else bridge.boot_transformers
        return _finish_bridge(boot(name, device=device, dtype=dtype, **kw), process)
    except OSError as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        aliases = _aliases()
        unlisted = "" if name in aliases else f" TransformerLens does not list it. {nearest(name, aliases)}"
        raise OSError(
            f"The files of {name!r} are neither in the local Hugging Face cache nor to be had from the Hub "
            f"({said}).{unlisted} Where there is a network, `hf download {name} --local-dir FOLDER` fetches them (config.json, "
            "the weights, the tokenizer's files); the path of that folder in place of the name needs none."
        ) from error


def _finish_bridge(model: Any, process: bool) -> Any:
    """Give a bridge an unembedding of its own, then process it where asked for."""
    untie(model)
    if process:
        model.enable_compatibility_mode()
    return model


def _known(name: str) -> str:
    """Return the name to load, or raise a ValueError with the nearest names instead of asking the network."""
    aliases = _aliases()
    for asked in (name, name.lower()):
        if asked in aliases:
            return aliases[asked]
    if name.startswith((".", "~", "/")) or Path(name).suffix in (".safetensors", ".json", ".pt", ".pth"):
        raise ValueError(f"There is no file or folder {name!r}.")
    if _hooked_class() is None and name.count("/") == 1:
        return name  # 4.x loads any name on the Hub whose architecture it supports
    raise ValueError(
        f"{name!r} is no shipped toy, no local file or folder, and no name that TransformerLens lists. "
        f"{nearest(name, [*checkpoints.names(), *map(str, SHIPPED), *aliases])}"
    )


def _aliases() -> dict[str, str]:
    """Return every name that the installed TransformerLens lists, each with the name to load."""
    if _hooked_class():
        loading = importlib.import_module("transformer_lens.loading_from_pretrained")
        found = {name: name for name in loading.OFFICIAL_MODEL_NAMES}
        return found | {alias: name for alias, name in loading.make_model_alias_map().items() if alias not in found}
    registry = importlib.import_module("transformer_lens.tools.model_registry.registry_io")
    old = registry.load_model_aliases()
    found = {alias: name for name, short in old.items() for alias in short}
    listed = [entry["model_id"] for entry in registry.load_supported_models_raw()["models"]]
    plain = [name.removeprefix("openai-community/") for name in listed]  # the Hub still knows GPT-2 without it
    return {name: name for name in plain} | found | {name: name for name in [*listed, *old]}


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def _trust(kw: dict[str, Any]) -> dict[str, Any]:
    return {"trust_remote_code": kw["trust_remote_code"]} if "trust_remote_code" in kw else {}


def _with_n_ctx(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "n_ctx": config["n_positions"]} if "n_positions" in config and "n_ctx" not in config else config
