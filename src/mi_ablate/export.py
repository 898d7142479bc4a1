"""An edited model as a Hugging Face folder, which transformers loads with the logits of the hooked model.

The edit of `mi_ablate.bake_` is written into the layout of transformers: L applied to every vector that a weight writes to
the residual stream, the whole affine map to embeddings and biases, in float64, rounded once to the dtype of the source.

    site              GPT-2 (rows)        GPT-NeoX (columns)      Llama, Mistral, Qwen2 (columns)
    hook_embed        transformer.wte     gpt_neox.embed_in       model.embed_tokens
    hook_pos_embed    transformer.wpe     -                       -
    hook_attn_out     attn.c_proj         attention.dense         self_attn.o_proj
    hook_mlp_out      mlp.c_proj          mlp.dense_4h_to_h       mlp.down_proj

An embedding that the readout shares is given up: the readout keeps a copy of what it was. Config, generation settings and
tokenizer stay the source's. The folder is loaded again before it gets its name, and its logits compared with those of the
hooks; what differs by more than rounding is not kept. In half precision rounding alone is a few parts in a hundred of the
largest logit, so there the comparison tells a wrong edit from a right one only where the edit does more than that.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mi_ablate import _writers
from mi_ablate._model_card import model_card
from mi_ablate._names import layer_of
from mi_ablate._types import FwdHooks, HookedModel
from mi_ablate.interventions import Placed
from mi_ablate.loading import SHIPPED, _folder_config, _known
from mi_ablate.model import attached, run
from mi_ablate.store import Card
from mi_ablate.toys import checkpoints
from mi_ablate.weights import Edit, _bake_one, _refuse_constants, as_hooks

_LLAMA = ("model.embed_tokens", "", "model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj")
_NEOX = ("gpt_neox.embed_in", "", "gpt_neox.layers.{}.attention.dense", "gpt_neox.layers.{}.mlp.dense_4h_to_h")
_GPT2 = ("transformer.wte", "transformer.wpe", "transformer.h.{}.attn.c_proj", "transformer.h.{}.mlp.c_proj")
LAYOUTS = {"gpt2": _GPT2, "gpt_neox": _NEOX, "llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA}
"""By the config's model_type: the modules behind hook_embed, hook_pos_embed, hook_attn_out, hook_mlp_out."""
_SITES = ("hook_embed", "hook_pos_embed", "hook_attn_out", "hook_mlp_out")
_TOLERANCE, _COARSE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2}, 5e-2
"""What rounding may change of the largest logit, by dtype; bfloat16 is the coarse one. In float64 transformers still takes
the angles of rotary positions and the squares of RMSNorm in float32."""
_KEPT = (
    *("tokenizer*", "vocab*", "merges*", "spiece.model", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template*", "generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*"),
)


def exported(
    model: HookedModel,
    edit: Edit,
    source: str | Path,
    out: str | Path,
    *,
    card: Card | Mapping[str, Any],
    tokens: Int[Tensor, "n p"] | None = None,
) -> Path:
    """Write the edited model to the folder ``out`` and return it.

    Args:
        model: what `mi_ablate.load_model(source)` gives, unprocessed; its logits under the hooks are the reference.
        edit: what `mi_ablate.bake_` takes.
        source: the Hugging Face folder, or name, that the model comes from.
        out: a folder that is not there yet, or is empty.
        card: of the edit: what was found, its effect beside controls, the collateral (`mi_ablate.read_card(file)`).
        tokens: what logits are compared on, ``[n p]``; 64 random tokens where None.

    Raises:
        ValueError: an edit that weights cannot express, a family with another layout, a model that is not the source's,
            a folder that holds something. Nothing is left behind.
        RuntimeError: logits of the written folder that are not the hooked model's; the folder is removed.

    """
    check_out(source, out)
    out, source = Path(out), _source(source)
    hooks = as_hooks(model, edit)
    if tokens is None:
        length = min(16, getattr(model.cfg, "n_ctx", None) or 16)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, model.cfg.d_vocab, (4, length), generator=generator)
    plain = _load(source)
    dtype, own = plain.dtype, model.cfg.dtype
    wide = max((dtype, own), key=lambda d: torch.finfo(d).bits)
    clean = _logits(plain.to(wide), tokens)
    _compare(clean, _hooked(model, tokens, []), _TOLERANCE.get(own, _COARSE), _other_model(source))
    plain = plain.to(dtype)  # exactly what it was
    _edit(plain, hooks, _writers.scales(model, [name for name, _ in hooks]))
    base = Path(source).resolve().name if Path(source).is_dir() else source
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        plain.save_pretrained(folder)
        _tokenizer(source, folder)
        del plain
        rounding = max(_TOLERANCE.get(d, _COARSE) for d in (dtype, own))
        written = _logits(_load(folder, wide), tokens)
        error = _compare(written, _hooked(model, tokens, hooks), rounding, _not_the_same)
        (folder / "README.md").write_text(_readme(base, hooks, card, error, tokens, dtype), encoding="utf-8")
        folder.chmod(0o755)
        folder.replace(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return out


def check_out(source: str | Path, out: str | Path) -> None:
    """Refuse, before any work, a source that has no layout here and a folder that cannot be written; see `exported`."""
    out, folder = Path(out), Path(_source(source))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already and not an empty folder. Give another, or remove it first.")
    check_writable(out)
    if folder.is_dir():  # of a name on the Hub, it is known once the model is there
        _check_kind(_folder_config(folder).get("model_type"))


def check_writable(folder: str | Path) -> None:
    """Refuse a folder that cannot be made, or written to."""
    there = next(path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written to" if there.is_dir() else "is a file"
        raise ValueError(f"{folder} cannot be written: {there} {why}. Give another folder.")


def _check_kind(kind: str | None) -> None:
    if kind not in LAYOUTS:
        raise ValueError(f"Models of type {kind!r} cannot be exported yet; these can: {', '.join(LAYOUTS)}.")


def _source(source: str | Path) -> str:
    """The folder, or the name on the Hub that TransformerLens's name stands for."""
    path = SHIPPED.get(source) or Path(source).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_file() or str(source) in checkpoints.names():
        raise ValueError(
            f"{source} is a toy, which transformers has no layout for. mi_ablate.save keeps the edit itself."
        )
    return _known(str(source))


def _load(source: str | Path, dtype: torch.dtype | str = "auto") -> Any:
    """The model as transformers has it, on the CPU, with no weight missing and none left over."""
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    try:
        plain, info = loader.from_pretrained(str(source), dtype=dtype, output_loading_info=True)
    except OSError as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise OSError(
            f"The files of {str(source)!r} are neither in the local Hugging Face cache nor to be had from the Hub ({said}). "
            "Give the local folder that the model was loaded from."
        ) from error
    lost = {
        what: sorted(info[f"{what}_keys"]) for what in ("missing", "unexpected", "mismatched") if info[f"{what}_keys"]
    }
    if lost:
        said = "; ".join(f"{what}: {', '.join(keys[:3])}" for what, keys in lost.items())
        raise ValueError(f"The weights in {source} are not those of its architecture ({said}).")
    return plain.eval()


def _edit(plain: Any, hooks: FwdHooks, scales: Mapping[str, float]) -> None:
    """Write the edit into the parameters of transformers' model, in place."""
    kind = plain.config.model_type
    _check_kind(kind)
    placed = [(name, hook.intervention) for name, hook in hooks if isinstance(hook, Placed)]
    if any(name == "hook_embed" for name, _ in placed):
        _untie(plain)
    plan = {name: _parameters(plain, LAYOUTS[kind], name) for name, _ in placed}
    _refuse_constants(placed, plan)
    with torch.no_grad():
        for name, intervention in placed:
            _bake_one(name, intervention, *plan[name], scales[name], False)


def _parameters(plain: Any, layout: tuple[str, ...], name: str) -> _writers.Parameters:
    """A view of a writer's weight whose last axis is the stream, and its bias."""
    site = name.rsplit(".", 1)[-1]
    module = plain.get_submodule(layout[_SITES.index(site)].format(layer_of(name)))
    columns = isinstance(module, torch.nn.Linear)
    return (module.weight.T if columns else module.weight), getattr(module, "bias", None)


def _untie(plain: Any) -> None:
    """Give the readout a copy of the embedding that it shares."""
    head, embedding = plain.get_output_embeddings(), plain.get_input_embeddings()
    if head.weight.data_ptr() == embedding.weight.data_ptr():
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        plain.config.tie_word_embeddings = False


def _tokenizer(source: str, folder: Path) -> None:
    """Copy what is not weights; of a name on the Hub, the tokenizer is loaded and saved."""
    if Path(source).is_dir():
        for pattern in _KEPT:
            for file in Path(source).glob(pattern):
                if file.is_file():
                    shutil.copyfile(file, folder / file.name)
        return
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def _logits(plain: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return plain(tokens.cpu()).logits.double()


def _hooked(model: HookedModel, tokens: Tensor, hooks: FwdHooks) -> Tensor:
    with torch.no_grad(), attached(model, hooks):
        return run(model, tokens).cpu().double()


def _compare(found: Tensor, reference: Tensor, rounding: float, wrong: Callable[[float], Exception]) -> float:
    """The largest difference relative to the largest logit; raises where that is more than ``rounding``."""
    same = found.shape == reference.shape
    error = float((found - reference).abs().max() / reference.abs().max().clamp(min=1e-300)) if same else float("inf")
    if not error <= rounding:
        raise wrong(error)
    return error


def _other_model(source: str) -> Callable[[float], Exception]:
    return lambda error: ValueError(
        f"Before any edit the model's logits differ from those of {source} by {error:.1e} of the largest: it was processed "
        "(load_model(source) with process=False), its dtype is too coarse to tell (load it in float32), or it is another "
        "model or revision."
    )


def _not_the_same(error: float) -> Exception:
    return RuntimeError(
        f"The written folder's logits differ from the hooked model's by {error:.1e} of the largest, more than rounding. "
        "It was removed."
    )


def _readme(base: str, hooks: FwdHooks, card: Any, error: float, tokens: Tensor, dtype: torch.dtype) -> str:
    import transformers

    import mi_ablate

    checked = (
        f"transformers loads this folder ({str(dtype).removeprefix('torch.')}) with the logits of the hooked model: the "
        f"largest difference on {tokens.numel()} tokens is {error:.1e} of the largest logit."
    )
    versions = {
        "mi_ablate": mi_ablate.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return model_card(base, hooks, card, checked, versions)
