"""Published modular-addition transformers: their parameter layout, read into HookedTransformer's.

Nanda et al. 2023 (arXiv 2301.05217) and Zhong et al. 2023 (arXiv 2306.17844) share one layout, recognised
here from names and shapes alone::

    embed.W_E [d_model, d_vocab]    pos_embed.W_pos [n_ctx, d_model]    unembed.W_U [d_model, d_vocab_out]
    blocks.i.attn.W_Q, W_K, W_V [head, d_head, d_model]     blocks.i.attn.W_O [d_model, head * d_head]
    blocks.i.mlp.W_in [d_mlp, d_model], b_in [d_mlp], W_out [d_model, d_mlp], b_out [d_model]

Two positions are Zhong's ``a b``: bidirectional, modulus d_vocab. Three are ``a b =``, modulus d_vocab - 1:
Nanda's, causal, or Zhong's, bidirectional, where the options have Zhong's names. ``attn.mask`` is dropped and
the option ``attention_dir`` ignored: Zhong's code makes a causal mask and never applies it. Outputs beyond
the modulus stay in the model and are no answers. What shapes cannot tell (attention coefficient, operation,
activation) comes from a JSON of the same stem beside the weights.

Nanda's code splits with Python's ``random.Random(seed)``; with ``seed`` and ``frac_train`` among the options
the split is known. The published low-precision run (mod 113) comes without options and fits seed 1 at 30 %:
the mean log loss of those pairs is 9.8 standard errors below the others', 3.2 for the next of 1,000 seeds.
"""

import json
import math
import pickle
import random
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from .._files import ArtefactError, write
from ._layout import TOP, check_tensors, to_state
from .config import ToyConfig

_OPERATIONS = {"add": "add", "sub": "sub", "subtract": "sub", "mul": "mul", "multiply": "mul"}
_SYMBOLS = {"+": "add", "-": "sub", "*": "mul"}
_SAME = {
    "C": "modulus",
    "p": "modulus",
    "n_layers": "n_layers",
    "num_layers": "n_layers",
    "d_model": "d_model",
}
_SAME |= {"n_heads": "n_heads", "num_heads": "n_heads", "d_mlp": "d_mlp"}
_UNREADABLE = {"diff_vocab": "separate tokens for a and b", "use_ln": "LayerNorm"}
_ZHONG = ("attn_coeff", "eqn_sign", "diff_vocab")
_STATES = ("model", "state_dict", "model_state_dict", "state_dicts")
_CONFIGS = ("config", "cfg", "options", "hyperparameters")
_OPTIONS_LIMIT = 1_000_000


def looks_published(tensors: dict[str, Shaped[Tensor, "..."]]) -> bool:
    """Return whether the names are this layout's and not HookedTransformer's (whose W_O has three axes)."""
    named = any(name in TOP or re.match(r"blocks\.\d+\.", name) for name in tensors)
    hooked = any(".b_Q" in name or (name.endswith(".W_O") and t.ndim == 3) for name, t in tensors.items())
    return named and not hooked


def read_options(path: str | Path) -> dict[str, Any]:
    """Return the JSON object of the same stem beside the weights at ``path``; empty where there is none."""
    beside = Path(path).with_suffix(".json")
    if not beside.is_file():
        return {}
    try:
        if beside.stat().st_size > _OPTIONS_LIMIT:
            raise ValueError(f"{beside.stat().st_size} bytes, {_OPTIONS_LIMIT} at most")
        options = json.loads(beside.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ArtefactError(f"{beside} is not readable JSON ({error}). Mend it or move it away.") from None
    if not isinstance(options, dict):
        raise ArtefactError(f"{beside} holds a {type(options).__name__}, not an object of options.")
    return options


def convert(
    tensors: dict[str, Shaped[Tensor, "..."]],
    options: dict[str, Any] | None = None,
    *,
    name: str = "the file",
) -> tuple[ToyConfig, dict[str, Shaped[Tensor, "..."]]]:
    """Return the config and the state under HookedTransformer's names and shapes, without the untrained
    biases.

    A ``d_model`` that is not heads times d_head is filled up with zeros (`_layout.to_state`). Raises an
    ArtefactError that lists missing, unknown, wrongly shaped and non-finite tensors, or the options
    that contradict the shapes or that no `ToyConfig` can express. Warns (UserWarning) where a two-token model
    comes without ``attn_coeff``: 1 (plain softmax) is assumed.
    """
    options = options or {}
    n_layers = check_tensors(tensors, name)
    n_heads, _, d_model = tensors["blocks.0.attn.W_Q"].shape
    n_ctx, d_vocab = tensors["pos_embed.W_pos"].shape[0], tensors["embed.W_E"].shape[1]
    n_out, d_mlp = tensors["unembed.W_U"].shape[1], tensors["blocks.0.mlp.b_in"].shape[0]
    modulus = d_vocab - (n_ctx == 3)
    if n_ctx not in (2, 3):
        raise ArtefactError(f"{name} has {n_ctx} positions; published layouts have 2 (a b) or 3 (a b =).")
    if modulus < 2 or n_out < modulus:
        raise ArtefactError(
            f"{name} has {d_vocab} input tokens and {n_out} outputs at {n_ctx} positions: modulus {modulus} "
            "needs two numbers or more, and as many outputs."
        )
    sizes: dict[str, Any] = {
        "modulus": modulus,
        "n_layers": n_layers,
        "d_model": d_model,
        "n_heads": n_heads,
        "d_mlp": d_mlp,
    }
    wrong = [
        f"{key} = {options[key]!r}, but the weights have {sizes[of]}"
        for key, of in _SAME.items()
        if options.get(key) is not None and options[key] != sizes[of]
    ]
    wrong += [f"{key} is set, and {what} is not read" for key, what in _UNREADABLE.items() if options.get(key)]
    if options.get("eqn_sign") and n_ctx != 3:
        wrong.append("eqn_sign is set, but the weights have 2 positions")
    if wrong:
        raise ArtefactError(f"The options of {name} do not fit its weights: {'; '.join(wrong)}.")
    zhong = n_ctx == 2 or any(key in options for key in _ZHONG)
    state = to_state(tensors, n_layers)
    config = ToyConfig(
        **sizes | {"d_model": state["embed.W_E"].shape[1]},
        operations=(_operation(options, modulus, name),),
        layout="a b" if n_ctx == 2 else "a b =",
        act_fn=_activation(options, name),
        normalization=None,
        biases="mlp",
        attention="bidirectional" if zhong else "causal",
        d_vocab_out=None if n_out == modulus else n_out,
        attention_coefficient=_coefficient(options, n_ctx, name),
    )
    return config, state


def known_split(config: ToyConfig, options: dict[str, Any]) -> Bool[Tensor, " n"] | None:
    """Return which pairs Nanda's code trained on, None where options lack ``seed`` or ``frac_train``."""
    seed, fraction = options.get("seed"), options.get("frac_train")
    if type(seed) is not int or type(fraction) is not float or not 0 < fraction < 1:
        return None
    pairs = list(range(config.modulus**2))
    random.Random(seed).shuffle(pairs)
    train = torch.zeros(len(pairs), dtype=torch.bool)
    train[pairs[: int(fraction * len(pairs))]] = True
    return train


def convert_pickle(source: str | Path, out: str | Path) -> Path:
    """Write the published model in the pickle ``source`` (.pt, .pth) to ``out`` (.safetensors) and return
    ``out``.

    ``torch.load(weights_only=True)`` reads it, so nothing in the file is executed; a pickle that holds more
    than tensors and plain values raises an ArtefactError. The state dict is the file itself or under
    ``model``, ``state_dict``, ``model_state_dict`` or ``state_dicts`` (the last of a list). Plain values
    beside it or under ``config``, and a JSON of the same stem beside ``source``, go to the JSON of the same
    stem beside ``out``. The layout is checked before anything is written.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    if out.suffix != ".safetensors":
        raise ValueError(f"out={str(out)!r} must end in .safetensors, which is read without unpickling.")
    if not source.is_file():
        raise ArtefactError(f"There is no file {source}.")
    try:
        found = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtefactError(
            f"{source} is refused: it is no pickle, or one with more than tensors and plain values "
            f"({str(error).splitlines()[0][:120]}). Nothing in it was executed. Save its state_dict alone."
        ) from None
    except Exception as error:  # a damaged file raises almost anything
        raise ArtefactError(
            f"{source} is not a readable PyTorch file ({type(error).__name__}). It may be truncated."
        ) from None
    state, options = _unpack(found, source)
    options |= read_options(source)
    convert(state, {"attn_coeff": 1, **options}, name=str(source))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(options, indent=1), encoding="utf-8")
    return write(out, state, {})


def _coefficient(options: dict[str, Any], n_ctx: int, name: str) -> float:
    value = options.get("attn_coeff")
    if value is None and n_ctx == 2:
        warnings.warn(
            f"{name} comes without options, and its weights do not tell its attention coefficient: 1 (plain "
            'softmax) is assumed. Write {"attn_coeff": 0} to the .json of the same stem if it is constant.',
            UserWarning,
            stacklevel=2,
        )
    value = 1 if value is None else value
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ArtefactError(f"The options of {name} have attn_coeff = {value!r}, which is no finite number.")
    return float(value)


def _operation(options: dict[str, Any], modulus: int, name: str) -> str:
    text = next((options[key] for key in ("funcs", "func", "fn_name") if options.get(key) is not None), "add")
    if isinstance(text, str) and text in _OPERATIONS:
        return _OPERATIONS[text]
    code = re.fullmatch(r"lambda(\w+):\(\1\[0\]([-+*])\1\[1\]\)%(\d+|C|p)", re.sub(r"\s", "", str(text)))
    if not code or (code[3].isdigit() and int(code[3]) != modulus):
        raise ArtefactError(
            f"The options of {name} have the function {text!r}; read are add, sub, mul and "
            f"'lambda x: (x[0]+x[1])%{modulus}' with +, - or *."
        )
    return _SYMBOLS[code[2]]


def _activation(options: dict[str, Any], name: str) -> str:
    text = next((options[key] for key in ("act_fn", "act_type") if options.get(key) is not None), "ReLU")
    if str(text).lower() not in ("relu", "gelu"):
        raise ArtefactError(f"The options of {name} have the activation {text!r}; read are ReLU and GeLU.")
    return str(text).lower()


def _unpack(found: Any, source: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state dict and the plain options of an unpickled object."""
    if not isinstance(found, dict):
        raise ArtefactError(f"{source} holds a {type(found).__name__}, not a state dict or a dict with one.")
    if found and all(isinstance(t, Tensor) for t in found.values()):
        return dict(found), {}
    inside = next((found[key] for key in _STATES if key in found), None)
    inside = inside[-1] if isinstance(inside, (list, tuple)) and inside else inside
    if not isinstance(inside, dict) or not all(isinstance(t, Tensor) for t in inside.values()):
        raise ArtefactError(
            f"{source} has the keys {sorted(map(str, found))}; a state dict is sought under {list(_STATES)}."
        )
    places = [found, *(found[key] for key in _CONFIGS if isinstance(found.get(key), dict))]
    return dict(inside), {str(k): v for place in places for k, v in place.items() if _is_plain(v)}


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, type(None))) and (type(value) is not float or math.isfinite(value))
