"""Published modular-addition transformers: their parameter layout, read into HookedTransformer's.

Nanda et al. 2023 (arXiv 2301.05217) and Zhong et al. 2023 (arXiv 2306.17844) share one layout, recognised here from
names and shapes alone::

    embed.W_E [d_model, d_vocab]            pos_embed.W_pos [n_ctx, d_model]       unembed.W_U [d_model, d_vocab_out]
    blocks.i.attn.W_Q/K/V [head, d_head, d_model]                                  blocks.i.attn.W_O [d_model, head * d_head]
    blocks.i.mlp.W_in [d_mlp, d_model], b_in [d_mlp], W_out [d_model, d_mlp], b_out [d_model]      (attn.mask is unused)

Two positions are Zhong's ``a b``, bidirectional, modulus d_vocab. Three are ``a b =``, modulus d_vocab - 1: causal
(Nanda), or bidirectional where options in Zhong's names say so. Their code builds a causal mask and never applies it,
so ``attention_dir`` in the options is ignored. Outputs beyond the modulus (``=``'s) are kept in the model and are no
answers. What shapes cannot tell (attention coefficient, operation, activation) comes from a JSON of the same stem.
"""

import json
import math
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from .._files import ArtefactError, write
from .config import ToyConfig

_TOP = ("embed.W_E", "pos_embed.W_pos", "unembed.W_U")
_BLOCK = ("attn.W_Q", "attn.W_K", "attn.W_V", "attn.W_O", "mlp.W_in", "mlp.b_in", "mlp.W_out", "mlp.b_out")
_DIMENSIONS = {"attn.W_Q": 3, "attn.W_K": 3, "attn.W_V": 3, "mlp.b_in": 1, "mlp.b_out": 1}
_LAYOUTS = {2: "a b", 3: "a b ="}
_SYMBOLS = {"+": "add", "-": "sub", "*": "mul"}
_OPERATIONS = {"add": "add", "sub": "sub", "subtract": "sub", "mul": "mul", "multiply": "mul"}
_ZHONG = ("attn_coeff", "eqn_sign", "diff_vocab")
_STATES = ("model", "state_dict", "model_state_dict", "state_dicts")
_CONFIGS = ("config", "cfg", "options", "hyperparameters")
_OPTIONS_LIMIT = 1_000_000


def looks_published(tensors: dict[str, Shaped[Tensor, "..."]]) -> bool:
    """Return whether the names are this layout's and not HookedTransformer's (whose W_O has three axes)."""
    outputs = [t for name, t in tensors.items() if name.endswith(".attn.W_O")]
    named = any(name in tensors for name in _TOP) or any(re.match(r"blocks\.\d+\.", name) for name in tensors)
    return named and not any(t.ndim == 3 for t in outputs) and not any(".b_Q" in name for name in tensors)


def read_options(path: str | Path) -> dict[str, Any]:
    """Return the JSON object of the same stem beside the weights at ``path``, or an empty dict where there is none."""
    beside = Path(path).with_suffix(".json")
    if not beside.is_file():
        return {}
    try:
        if beside.stat().st_size > _OPTIONS_LIMIT:
            raise ArtefactError(
                f"{beside} has {beside.stat().st_size} bytes; options have {_OPTIONS_LIMIT} at most."
            )
        options = json.loads(beside.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise ArtefactError(
            f"{beside} is not readable JSON ({type(error).__name__}: {error}). Mend it or move it away."
        ) from None
    if not isinstance(options, dict):
        raise ArtefactError(f"{beside} holds a {type(options).__name__}, not an object of options.")
    return options


def convert(
    tensors: dict[str, Shaped[Tensor, "..."]],
    options: dict[str, Any] | None = None,
    *,
    name: str = "the file",
) -> tuple[ToyConfig, dict[str, Shaped[Tensor, "..."]]]:
    """Return the config and the state (HookedTransformer's names and shapes, all but the untrained biases).

    Raises an ArtefactError that lists missing, unknown, wrongly shaped and non-finite tensors, or the options that
    contradict the shapes or that no `ToyConfig` can express. Warns (UserWarning) where a two-token model comes without
    ``attn_coeff``: 1 (plain softmax) is assumed.
    """
    options = dict(options or {})
    n_layers = _check_tensors(tensors, name)
    d_model, d_vocab = tensors["embed.W_E"].shape
    n_ctx, n_out = tensors["pos_embed.W_pos"].shape[0], tensors["unembed.W_U"].shape[1]
    n_heads, d_head, _ = tensors["blocks.0.attn.W_Q"].shape
    if n_ctx not in _LAYOUTS:
        raise ArtefactError(f"{name} has {n_ctx} positions; published layouts have 2 (a b) or 3 (a b =).")
    modulus = d_vocab - (n_ctx == 3)
    if modulus < 2 or n_out < modulus:
        raise ArtefactError(
            f"{name} has {d_vocab} input tokens and {n_out} outputs at {n_ctx} positions; modulus {modulus} needs at "
            "least 2 numbers and as many outputs."
        )
    if n_heads * d_head != d_model:
        raise ArtefactError(
            f"{name} has {n_heads} heads of width {d_head} in d_model {d_model}; only equal splits are read."
        )
    sizes = {"modulus": modulus, "n_layers": n_layers, "d_model": d_model, "n_heads": n_heads, "n_ctx": n_ctx}
    _check_options(options, sizes, name)
    coefficient = _coefficient(options, n_ctx, name)
    zhong = n_ctx == 2 or any(key in options for key in _ZHONG)
    config = ToyConfig(
        modulus=modulus,
        operations=(_operation(options, modulus, name),),
        layout=_LAYOUTS[n_ctx],
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        d_mlp=tensors["blocks.0.mlp.b_in"].shape[0],
        act_fn=_activation(options, name),
        normalization=None,
        biases="mlp",
        attention="bidirectional" if zhong else "causal",
        d_vocab_out=None if n_out == modulus else n_out,
        attention_coefficient=coefficient,
    )
    return config, _state(tensors, n_layers)


def convert_pickle(source: str | Path, out: str | Path) -> Path:
    """Write the published model in the pickle ``source`` (.pt, .pth) to ``out`` (.safetensors) and return ``out``.

    ``torch.load(weights_only=True)`` reads it, so nothing in the file is executed; a pickle that holds more than
    tensors and plain values raises an ArtefactError. The state dict is the file itself or under ``model``,
    ``state_dict``, ``model_state_dict`` or ``state_dicts`` (the last of a list). Plain values beside or under
    ``config``, and a JSON of the same stem beside ``source``, go to the JSON of the same stem beside ``out``. The
    layout is checked before anything is written.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    if out.suffix != ".safetensors":
        raise ValueError(f"out={str(out)!r} must end in .safetensors, so that it is read without unpickling.")
    if not source.is_file():
        raise ArtefactError(f"There is no file {source}.")
    try:
        found = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtefactError(
            f"{source} is refused: it is no pickle, or one that holds more than tensors and plain values "
            f"({str(error).splitlines()[0][:120]}). Nothing in it was executed. Save its state_dict alone."
        ) from None
    except Exception as error:  # a damaged file raises almost anything
        raise ArtefactError(
            f"{source} is not a readable PyTorch file ({type(error).__name__}). It may be truncated."
        ) from None
    state, options = _unpack(found, source)
    options |= read_options(source)
    convert(state, {"attn_coeff": 1, **options}, name=str(source))
    plain = {key: value for key, value in options.items() if _is_plain(value)}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(plain, indent=1), encoding="utf-8")
    return write(out, state, {})


def _check_tensors(tensors: dict[str, Tensor], name: str) -> int:
    """Return the number of layers, or raise one error that lists everything that is wrong with the tensors."""
    layers = {int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", n) for n in tensors) if m}
    n_layers = len(layers) or 1
    expected = [*_TOP, *(f"blocks.{i}.{part}" for i in range(n_layers) for part in _BLOCK)]
    wrong = [f"missing {n}" for n in expected if n not in tensors]
    wrong += [
        f"unknown {n} {list(t.shape)}"
        for n, t in tensors.items()
        if n not in expected and not n.endswith(".attn.mask")
    ]
    if not wrong:
        wrong = _wrong_shapes(tensors, n_layers)
    if wrong:
        raise ArtefactError(
            f"{name} is not in the published layout of Nanda et al. or Zhong et al.: {'; '.join(wrong)}. "
            "mi_ablate.toys.published lists the names and shapes it reads."
        )
    return n_layers


def _wrong_shapes(tensors: dict[str, Tensor], n_layers: int) -> list[str]:
    shape = {n: tuple(t.shape) for n, t in tensors.items()}
    wrong = []
    for n in (*_TOP, *(f"blocks.{i}.{part}" for i in range(n_layers) for part in _BLOCK)):
        axes = _DIMENSIONS.get(n.split(".", 2)[-1], 2)
        if len(shape[n]) != axes:
            wrong.append(f"{n} is {list(shape[n])}, not of {axes} axes")
    if wrong:
        return wrong
    d, (h, e, _), (m,) = shape["embed.W_E"][0], shape["blocks.0.attn.W_Q"], shape["blocks.0.mlp.b_in"]
    want: dict[str, tuple[int, ...]] = {"pos_embed.W_pos": (shape["pos_embed.W_pos"][0], d)}
    want["unembed.W_U"] = (d, shape["unembed.W_U"][1])
    block: dict[str, tuple[int, ...]] = {f"attn.W_{k}": (h, e, d) for k in "QKV"} | {"attn.W_O": (d, h * e)}
    block |= {"mlp.W_in": (m, d), "mlp.b_in": (m,), "mlp.W_out": (d, m), "mlp.b_out": (d,)}
    want |= {f"blocks.{i}.{part}": s for i in range(n_layers) for part, s in block.items()}
    wrong = [f"{n} is {list(shape[n])}, not {list(s)}" for n, s in want.items() if shape[n] != s]
    checked = [n for n in shape if not n.endswith(".attn.mask")]
    wrong += [
        f"{n} is {tensors[n].dtype}, not floating" for n in checked if not tensors[n].is_floating_point()
    ]
    return wrong or [
        f"{n} has values that are not finite" for n in checked if not tensors[n].isfinite().all()
    ]


def _state(tensors: dict[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """Transpose and split heads: W [head d_head d_model] -> [head d_model d_head], W_O -> [head d_head d_model]."""
    h, e, d = tensors["blocks.0.attn.W_Q"].shape
    state = {"embed.W_E": tensors["embed.W_E"].T, "pos_embed.W_pos": tensors["pos_embed.W_pos"]}
    for i in range(n_layers):
        part = {name: tensors[f"blocks.{i}.{name}"] for name in _BLOCK}
        for key in ("attn.W_Q", "attn.W_K", "attn.W_V"):
            state[f"blocks.{i}.{key}"] = part[key].transpose(1, 2)
        state[f"blocks.{i}.attn.W_O"] = part["attn.W_O"].T.reshape(h, e, d)
        for key in ("mlp.W_in", "mlp.W_out"):
            state[f"blocks.{i}.{key}"] = part[key].T
        for key in ("mlp.b_in", "mlp.b_out"):
            state[f"blocks.{i}.{key}"] = part[key]
    state["unembed.W_U"] = tensors["unembed.W_U"]
    return {name: t.contiguous() for name, t in state.items()}


def _check_options(options: dict[str, Any], sizes: dict[str, int], name: str) -> None:
    """Refuse options that contradict the shapes, or that ask for what a `ToyConfig` cannot express."""
    same = {
        "C": "modulus",
        "p": "modulus",
        "n_layers": "n_layers",
        "num_layers": "n_layers",
        "d_model": "d_model",
    }
    same |= {"n_heads": "n_heads", "num_heads": "n_heads", "n_ctx": "n_ctx"}
    wrong = [
        f"{key} = {options[key]!r}, but the weights have {sizes[of]}"
        for key, of in same.items()
        if options.get(key) is not None and options[key] != sizes[of]
    ]
    if options.get("eqn_sign") and sizes["n_ctx"] != 3:
        wrong.append("eqn_sign is set, but the weights have 2 positions")
    for key, meaning in (("diff_vocab", "separate tokens for a and b"), ("use_ln", "LayerNorm")):
        if options.get(key):
            wrong.append(f"{key} is set, and {meaning} cannot be read from this layout")
    if wrong:
        raise ArtefactError(f"The options of {name} do not fit its weights: {'; '.join(wrong)}.")


def _coefficient(options: dict[str, Any], n_ctx: int, name: str) -> float:
    value = options.get("attn_coeff")
    if value is None:
        if n_ctx == 2:
            warnings.warn(
                f"{name} has no options beside it, and its attention coefficient is not in its weights: 1 (plain "
                'softmax) is assumed. Write {"attn_coeff": 0} to the .json of the same stem if it is constant.',
                UserWarning,
                stacklevel=2,
            )
        return 1.0
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ArtefactError(
            f"The options of {name} have attn_coeff = {value!r}, which is not a finite number."
        )
    return float(value)


def _operation(options: dict[str, Any], modulus: int, name: str) -> str:
    for key in ("funcs", "func", "fn_name"):
        text = options.get(key)
        if text is None:
            continue
        if text in _OPERATIONS:
            return _OPERATIONS[text]
        code = re.fullmatch(r"lambda(\w+):\(\1\[0\]([-+*])\1\[1\]\)%(\d+|C|p)", re.sub(r"\s", "", str(text)))
        if not code or (code[3].isdigit() and int(code[3]) != modulus):
            raise ArtefactError(
                f"The options of {name} have {key} = {text!r}; read are add, sub, mul and "
                f"'lambda x: (x[0]+x[1])%{modulus}' with +, - or *."
            )
        return _SYMBOLS[code[2]]
    return "add"


def _activation(options: dict[str, Any], name: str) -> str:
    text = next((options[key] for key in ("act_fn", "act_type") if options.get(key) is not None), "ReLU")
    if str(text).lower() not in ("relu", "gelu"):
        raise ArtefactError(
            f"The options of {name} have the activation {text!r}; read are 'ReLU' and 'GeLU'."
        )
    return str(text).lower()


def _unpack(found: Any, source: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state dict and the plain options of an unpickled object."""
    if not isinstance(found, dict):
        raise ArtefactError(f"{source} holds a {type(found).__name__}, not a state dict or a dict with one.")
    if found and all(isinstance(t, Tensor) for t in found.values()):
        return dict(found), {}
    inside = next((found[key] for key in _STATES if key in found), None)
    if isinstance(inside, (list, tuple)) and inside:
        inside = inside[-1]
    if not isinstance(inside, dict) or not inside or not all(isinstance(t, Tensor) for t in inside.values()):
        raise ArtefactError(
            f"{source} has the keys {sorted(map(str, found))}; a state dict is looked for under {list(_STATES)}."
        )
    options = {str(key): value for key, value in found.items() if _is_plain(value)}
    for key in _CONFIGS:
        if isinstance(found.get(key), dict):
            options |= {str(k): v for k, v in found[key].items() if _is_plain(v)}
    return dict(inside), options


def _is_plain(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, (str, int, bool))
        or (isinstance(value, float) and math.isfinite(value))
    )
