"""Run every family of transformers under segments and write down what came out, for docs/families.md.

    make families          # about ten minutes; rewrites the rows, docs/families.md and the verified table

A family is run, not read about: a tiny random model of it is probed layer by layer, and compared with the same stock
model whose masks come from a double loop.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from transformers import AttentionMaskInterface
from transformers.masking_utils import eager_mask, flex_attention_mask, sdpa_mask

import segattn
from families.tiny_models import CAUSAL_FAMILIES, IMAGE_TEXT_FAMILIES, CannotBuild, build
from segattn.modeling import layer_attention, probe, verified

IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")
STOCK_MASKS = {"eager": eager_mask, "sdpa": sdpa_mask, "flex_attention": flex_attention_mask}
ROWS = [[-1] + [4] * 6 + [0] * 5 + [-1] * 2, [0] * 9 + [-1] * 3 + [1] * 2]
TOLERANCE = 1e-4
LENGTHS = (10, 24)  # some families compress or select keys only in a longer text
CACHES = {"dynamic": {}, "static": {"cache_implementation": "static", "disable_compile": True}}


@dataclasses.dataclass
class Row:
    """What came out for one family.

    `backends` holds for each attention implementation "exact", "partial", "refused: why" or "-" (transformers has none
    for the class); `error` is the largest difference of a logit from the stock model under the oracle's masks. `slices`
    lists the attention implementations in whose place the layers compute slices exactly.
    """

    family: str
    image_text: bool
    class_name: str = ""
    status: str = "refused"
    reason: str = ""
    backends: dict = dataclasses.field(default_factory=dict)
    caches: list = dataclasses.field(default_factory=list)
    slices: list = dataclasses.field(default_factory=list)
    error: float = 0.0


def families():
    return [(name, False) for name in CAUSAL_FAMILIES] + [(name, True) for name in IMAGE_TEXT_FAMILIES]


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.simplefilter("ignore")
        before = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        try:
            yield
        finally:
            transformers.logging.set_verbosity(before)


@contextlib.contextmanager
def oracle_masks(implementation, rows, reals=None):
    """Give stock models the rule, entry by entry; the stock causal mask decides how far a local layer reaches."""

    def mask(**arguments):
        length = len(rows[0])
        if arguments["q_length"] != length or "allow_is_bidirectional_skip" in arguments:  # an encoder's tokens
            return STOCK_MASKS[implementation](**arguments)
        bare = {**arguments, "attention_mask": None, "allow_is_causal_skip": False}
        allowed = sdpa_mask(**bare).expand(len(rows), -1, -1, -1).clone()
        for b, row in enumerate(rows):
            local = allowed[b].clone()
            for i in range(length):
                for j in range(length):
                    if j > i and row[i] == row[j] >= 0:
                        allowed[b, :, i, j] = local[:, j, i]
                    if reals is not None and not reals[b][j]:
                        allowed[b, :, i, j] = False
        if reals is not None:
            allowed |= ~allowed.any(-1, keepdim=True)  # padding queries, whose output is never read
        if implementation == "eager":
            return torch.where(allowed, 0.0, torch.finfo(arguments["dtype"]).min).to(arguments["dtype"])
        if implementation == "flex_attention":
            picked = lambda b, h, q, k: allowed[b, 0, q, k]  # noqa: E731
            return flex_attention_mask(**{**bare, "mask_function": picked})
        return allowed

    AttentionMaskInterface._global_mapping[implementation] = mask
    try:
        yield
    finally:
        AttentionMaskInterface._global_mapping[implementation] = STOCK_MASKS[implementation]


def tokens(batch=2, length=14, seed=0):
    return torch.randint(3, 96, (batch, length), generator=torch.Generator().manual_seed(seed))


def survey_family(family, image_text, *, thorough=True):
    """Probe a family under every backend; `thorough` also compares logits and caches with the oracle."""
    row = Row(family, image_text)
    for implementation in IMPLEMENTATIONS if thorough else IMPLEMENTATIONS[:2]:
        try:
            model = build(family, implementation, image_text=image_text)
        except CannotBuild as error:
            row.reason = f"not built: {error}"
            return row
        except (ValueError, ImportError, KeyError):
            row.backends[implementation] = "-"
            continue
        row.class_name = type(model).__name__
        row.backends[implementation] = backend_status(model, implementation, row, thorough)
    conclude(row)
    if thorough and row.status != "refused":
        working = [name for name, found in row.backends.items() if found in ("exact", "partial")]
        preferred = "sdpa" if "sdpa" in working else working[0]
        row.caches = [name for name in CACHES if cache_works(family, image_text, preferred, name)]
        row.slices = [name for name in ("eager", "sdpa") if slices_work(row, name)]
    return row


def slices_work(row, implementation):
    """Whether the layers compute slices, follow the rule with them, and give the oracle's logits."""
    if row.backends.get(implementation) not in ("exact", "partial"):
        return False
    # Tiny models have tiny scores: a cap that is forgotten shows only if it is low.
    low_cap = {"attn_logit_softcapping": 0.5}
    plain = build(row.family, implementation, image_text=row.image_text)
    options = low_cap if hasattr(plain.config.get_text_config(decoder=True), "attn_logit_softcapping") else {}
    try:
        model = build(row.family, implementation, image_text=row.image_text, **options)
        with slices_everywhere(row.class_name) as ran:
            segattn.enable(model, backend="sliced", allow_partial=True)
            verdicts = [probe(model, length) for length in LENGTHS]
            segattn.disable(model)
            ran.clear()
            error = oracle_error(model, implementation, backend="sliced")
    except Exception:
        return False
    return all(verdict.status != "refused" for verdict in verdicts) and bool(ran) and error <= TOLERANCE


@contextlib.contextmanager
def slices_everywhere(class_name):
    """Let a class run slices whatever the table says; yields a list that grows with each layer that does."""
    ran = []

    def sliced(*arguments):
        ran.append(1)
        return stock(*arguments)

    stock, table = layer_attention._sliced, verified.SLICED
    layer_attention._sliced, verified.SLICED = sliced, {**table, class_name: "eager sdpa"}
    try:
        yield ran
    finally:
        layer_attention._sliced, verified.SLICED = stock, table


def backend_status(model, implementation, row, thorough):
    for length in LENGTHS:
        try:
            verdict = probe(readable(model, implementation, row), length)
        except segattn.UnsupportedModelError as error:
            return f"refused: {error}"
        if verdict.status == "refused":
            return f"refused: {verdict.reason}"
    if verdict.reason:
        row.reason = verdict.reason
    if thorough:
        try:
            error = oracle_error(model, implementation)
        except Exception as failure:
            return f"refused: it cannot be run with two rows of text ({type(failure).__name__}: {failure})"
        row.error = max(row.error, error)
        if error > TOLERANCE:
            return f"refused: logits differ from the oracle's by {error:.1g}"
    return verdict.status


def readable(model, implementation, row):
    """The model, without a choice of keys by content, which would hide from the probe that a key may be seen."""
    if not hasattr(model.config.get_text_config(decoder=True), "index_topk"):
        return model
    return build(row.family, implementation, image_text=row.image_text, index_topk=4 * max(LENGTHS))


def oracle_error(model, implementation, backend="dense"):
    ids = tokens()
    with torch.no_grad():
        with oracle_masks(implementation, ROWS):
            want = model(input_ids=ids, use_cache=False).logits
        segattn.enable(model, allow_partial=True, backend=backend)
        got = model(input_ids=ids, use_cache=False, segment_ids=torch.tensor(ROWS)).logits
    segattn.disable(model)
    return float((got - want).abs().max())


def cache_works(family, image_text, implementation, cache):
    """Whether generating on a cache gives the tokens and logits of generating without one."""
    model = segattn.enable(build(family, implementation, image_text=image_text), allow_partial=True)
    ids, options = tokens(), {"do_sample": False, "max_new_tokens": 6, "return_dict_in_generate": True}
    options |= {"output_logits": True, "eos_token_id": None, "pad_token_id": 0}
    try:
        plain, cached = (
            model.generate(ids, segment_ids=torch.tensor(ROWS), **options, **extra)
            for extra in ({"use_cache": False}, {"use_cache": True, **CACHES[cache]})
        )
    except Exception:
        return False
    equal = torch.equal(plain.sequences, cached.sequences)
    return equal and torch.allclose(torch.stack(plain.logits), torch.stack(cached.logits), atol=1e-3, rtol=1e-3)


def conclude(row):
    statuses = {found for found in row.backends.values() if found in ("exact", "partial")}
    refusals = [found.removeprefix("refused: ") for found in row.backends.values() if found.startswith("refused")]
    if statuses:
        row.status = "partial" if "partial" in statuses else "exact"
    if refusals:
        row.reason = refusals[0]


def rows_file(release):
    return Path(__file__).parent / f"survey-{release}.json"


def read_rows(release):
    return [Row(**row) for row in json.loads(rows_file(release).read_text())]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="print the rows of these families and write nothing")
    arguments = parser.parse_args()
    found = []
    with quiet():
        for family, image_text in families():
            if arguments.only and family not in arguments.only:
                continue
            row = survey_family(family, image_text)
            found.append(row)
            print(family, row.class_name, row.status, row.backends, row.caches, f"{row.error:.1g}", flush=True)
    if not arguments.only:
        target = rows_file(transformers.__version__)
        partial = target.with_suffix(".partial")
        partial.write_text(json.dumps([dataclasses.asdict(row) for row in found], indent=1) + "\n")
        partial.replace(target)


if __name__ == "__main__":
    torch.set_num_threads(1)  # tiny models: more threads only wait for each other
    sys.exit(main())
