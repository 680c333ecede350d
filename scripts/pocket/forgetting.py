"""What an adapter trained on a few new pictures costs of what `pocket` knows:

    python scripts/pocket/forgetting.py --index bicycle.safetensors --subject bicycle
    python scripts/pocket/forgetting.py --index bicycle.safetensors --subject bicycle --adapter A

Without and with the adapter: the share of correct pictures of known subjects, drawn while the
adapter receives the index's patches, and the share of pictures that show the new subject with
DAiD, all at the recommended values.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import arrag_engine as arrag
from arrag_engine.captions import article
from scripts.pocket.bench import PROMPTS, SCORER
from scripts.pocket.bench.prompts import judge, of_kind, read_prompts
from scripts.pocket.bench.scorer import Scorer, load_scorer

KINDS = "single_object,two_object,colors,counting,position"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--index", required=True, help="of the new pictures")
    parser.add_argument("--subject", required=True, help="what they show")
    parser.add_argument("--adapter", help="(default: none)")
    parser.add_argument("--kinds", default=KINDS, help="of known prompts (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=12, help="prompts of a kind (default: 12)")
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each (default: 4)")
    parser.add_argument("--first-seed", type=int, default=20, help="(default: 20)")
    parser.add_argument("--new", type=int, default=32, help="of the new subject (default: 32)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, index = arrag.load_model("pocket"), arrag.load_index(args.index)
    adapter = arrag.load_adapter(args.adapter, model) if args.adapter else None
    scorer = load_scorer(SCORER)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    silent = arrag.Layer(index, only="", weight=0.0)
    shares = []
    for kind in args.kinds.split(","):
        right: list[bool] = []
        for prompt in of_kind(read_prompts(PROMPTS), kind, args.limit):
            drawing = arrag.draw(model, prompt.text, seeds, [silent], adapter)
            right += [judge(prompt, found).right for found in detected(scorer, drawing)]
        shares.append(float(np.mean(right)))
        print(f"{kind}: {shares[-1]:.3f} of {len(right)}", flush=True)
    print(f"known, mean of the kinds: {np.mean(shares):.3f}")
    drawing = arrag.draw(
        model, article(args.subject), range(args.new), [arrag.Layer(index)], adapter
    )
    shown = [any(t.name == args.subject for t in found) for found in detected(scorer, drawing)]
    print(f"new, with DAiD: {np.mean(shown):.3f} of {len(shown)}")


def detected(scorer: Scorer, drawing: arrag.Drawing) -> list:
    """What the detector finds on each picture."""
    return scorer.detect(np.stack([np.asarray(image) for image in drawing.images]))


if __name__ == "__main__":
    main()
